#!/usr/bin/env python3
"""Trains two small vocabularies on this repository's text and records what independent tokenizers make of mixed texts with them.

usage: make_tokenizers.py [FOLDER]     FOLDER is tests/tokenizers unless given

Writes rank.gguf (byte-level BPE, by `tokenizers`), smollm.json and llama-bpe.json (the same vocabulary as tokenizer.json), score.gguf and
score_prefix.gguf (BPE by score, by `sentencepiece`; the second with a space before every text, as Llama 2 has it) and cases.json: texts
in hexadecimal and their ids for each file and pre-tokenizer.
Needs gguf, tokenizers, sentencepiece, protobuf. Texts are well-formed UTF-8: the recorded tokenizers take no others.
"""
import io
import json
import sys

sys.path.pop(0)  # select.py of this folder is not the module `select`
from importlib.metadata import version
from pathlib import Path

import sentencepiece
from gguf import GGUFWriter
from sentencepiece import sentencepiece_model_pb2 as pb
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parents[2]
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
USER_DEFINED = ["<table>", "\n\n", "\u2581" * 4, "\u2581" * 2, "->"]

TEXTS = ["", " ", "  ", "a", "The cache keeps 4096 tokens of 128 values.", " it's John's, they'll say 'tis WE'LL don't", "x = f(a[0], b->c);\n    return  y;\n\n",
         "in 2024: 1,234.56e-7 0x1F 12345678", "tabs\tand\r\nnewlines\n \n  mixed  \n", "trailing   ", "   leading", "Größe übertrifft Maß; naïve façade",
         "Съешь же ещё этих мягких булок", "東京都は日本の首都です。", "中文 分词", "مرحبا ١٢٣", "हिन्दी २०२४", "안녕하세요", "😀👍🏽👩‍👩‍👧🇩🇪", "a😀b 😀 c",
         "<table>x</table> <s>not special</s>", "->->--> <-", "\u00a0no\u00a0break\u3000wide", "½ ² Ⅷ ①", "e\u0301 combining", "\u200bzero\u200dwidth", "_snake_case CamelCase",
         "https://example.org/a?b=c&d=%20#e", "((((((nested))))))!!!???...", "\x01\x02\x7f control", "'S 'LL 'Re", "don\u2019t curly", "a" * 70, "ab" * 40, " " * 40 + "x",
         "\n" * 9, "0" * 11, "for i in range(10):\n        print(i)\n", "key\tvalue\t1\t2.5\n", "Z̷a̷l̷g̷o̷", "ﬁ ﬂ ligatures", "∑ ∫ √ ≤ ≥ ≠", "mixed 中a文b 1字2"]


def training_text():
    return "\n".join((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md", "core/README.md", "models/README.md"))


def write(path, model, pre, tokens, kinds, scores=None, merges=None, prefix=None):
    writer = GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    if scores is not None:
        writer.add_token_scores(scores)
        writer.add_add_space_prefix(prefix)
        writer.add_unk_token_id(0)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
    if merges is not None:
        writer.add_token_merges(merges)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def by_rank(folder, text):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    write(folder / "rank.gguf", "gpt2", "smollm", tokens, [3] + [1] * (len(tokens) - 1), merges=merges)
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = lambda pattern: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), plain])
    whole = Tokenizer(models.BPE(vocab=model["vocab"], merges=[tuple(m.split(" ")) for m in merges], ignore_merges=True))
    variants = {"gpt-2": (tokenizer, pre_tokenizers.ByteLevel(add_prefix_space=False)),
                "smollm": (tokenizer, pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])),
                "llama-bpe": (whole, split(LLAMA3)), "qwen2": (tokenizer, split(LLAMA3.replace("{1,3}", "")))}
    out = {}
    for name, (used, pre) in variants.items():
        used.pre_tokenizer = pre
        out[name] = [used.encode(t, add_special_tokens=False).ids for t in TEXTS]
        if name in ("smollm", "llama-bpe"):
            used.save(str(folder / f"{name}.json"), pretty=False)
    return out


def by_score(folder, text):
    out = {}
    for name, prefix, user_defined in (("score", False, USER_DEFINED), ("score_prefix", True, [])):
        trained = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(text.split("\n")), model_writer=trained, vocab_size=700, model_type="bpe",
                                                 byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
                                                 add_dummy_prefix=prefix, character_coverage=1.0, user_defined_symbols=user_defined, minloglevel=2)
        proto = pb.ModelProto.FromString(trained.getvalue())
        # As converters write them: user-defined tokens match the raw text, so their spaces are spaces.
        pieces = [(p.piece.replace("\u2581", " ") if p.type == 4 else p.piece, p.type, p.score) for p in proto.pieces]
        write(folder / f"{name}.gguf", "llama", "default", [p for p, _, _ in pieces], [t for _, t, _ in pieces], scores=[s for _, _, s in pieces], prefix=prefix)
        processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        out[name] = [processor.EncodeAsIds(t) for t in TEXTS]
    return out


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    text = training_text()
    cases = {"made_by": {name: version(name) for name in ("tokenizers", "sentencepiece", "gguf")}, "texts": [t.encode().hex() for t in TEXTS],
             "rank": by_rank(folder, text), **by_score(folder, text)}
    lines = [f' "{key}": {json.dumps(value)}' for key, value in cases.items() if key != "rank"]
    lines.append(' "rank": {\n' + ",\n".join(f'  "{pre}": {json.dumps(ids)}' for pre, ids in cases["rank"].items()) + "}")
    (folder / "cases.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "tests/tokenizers")
