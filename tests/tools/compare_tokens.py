#!/usr/bin/env python3
"""Compares token ids with independent tokenizers on 10,000 lines of mixed text, and checks that every line comes back.

usage: compare_tokens.py TOOL FILE.gguf...      TOOL is build/release/tests/kvatlas_weights_tool

The lines: prose and code of this repository and of Python's library, digits, runs of spaces and newlines, emoji, seven scripts,
control characters, random characters of all planes, random bytes, broken UTF-8. Oracles, those that are installed:
  llama.cpp          in llama-cpp-py-sync or llama-cpp-cffi (both kinds of vocabulary)
  tokenizers         byte-level vocabularies: Hugging Face's BPE behind the published regular expressions, matched by `regex` on
                     text whose broken bytes are lone surrogates
  sentencepiece      vocabularies with scores, on lines of well-formed text
What an oracle cannot be asked is counted apart: llama.cpp replaces broken bytes before byte-level BPE, or fails; with scores it lets a
character that is cut off swallow a space behind it, and like SentencePiece it takes U+2581 in a text for a space (kvatlas spells
both in bytes, so that the text comes back).
"""
import random
import re
import struct
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

LINES = 10_000
CUT_BEFORE_SPACE = re.compile(rb"[\xC0-\xFF].{0,2} ", re.DOTALL)
ROOT = Path(__file__).resolve().parents[2]


def corpus() -> list[bytes]:
    rng = random.Random(20261122)
    sources = [p for ext in ("*.md", "*.cpp", "*.hpp", "*.py", "*.json") for p in sorted(ROOT.rglob(ext)) if "build" not in p.parts]
    library = sorted(Path(random.__file__).parent.glob("*.py"))
    text = [line for p in sources + library for line in p.read_bytes().split(b"\n") if line]
    lines = rng.sample(text, 5000)
    for _ in range(700):  # several lines at once: indentation, blank lines
        start = rng.randrange(len(text) - 8)
        lines.append(rng.choice((b"\n", b"\n\n", b"\r\n", b"\n\t")).join(text[start:start + rng.randrange(2, 8)]))
    scripts = ("Der schnelle braune Fuchs springt über den faulen Hund; ÄÖÜ ß", "Съешь же ещё этих мягких французских булок", "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
               "いろはにほへと ちりぬるを 東京都", "中文分词需要特别处理，因为没有空格。", "مرحبا بالعالم كيف حالك", "नमस्ते दुनिया १२३४", "안녕하세요 세계")
    emoji = "😀😂🥲👩‍👩‍👧‍👦🏳️‍🌈👍🏽🇩🇪❤️🔥"
    assigned = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs")]
    words = [w for line in text[:3000] for w in line.split()]
    for i in range(LINES - len(lines)):
        kind = i % 10
        if kind == 0:
            line = "".join(rng.choice("0123456789.,-+eE xX%$") for _ in range(rng.randrange(1, 60)))
        elif kind == 1:
            line = " ".join(rng.choice(scripts)[rng.randrange(20):] + rng.choice(emoji) for _ in range(rng.randrange(1, 5)))
        elif kind == 2:
            line = "".join(rng.choice(emoji + " ab'") for _ in range(rng.randrange(1, 40)))
        elif kind == 3:
            line = "".join(rng.choice((" ", "  ", "\t", "\n", "\n\n", "\r\n", "\u00a0", "\u3000", "a", "Z9", "!", "'s", "'LL", "'re")) for _ in range(rng.randrange(1, 60)))
        elif kind == 4:
            line = "".join(rng.choice(assigned) for _ in range(rng.randrange(1, 30)))
        elif kind == 5:
            line = "".join(chr(rng.randrange(1, 128)) for _ in range(rng.randrange(1, 80)))
        elif kind == 6:
            lines.append(bytes(rng.randrange(1, 256) for _ in range(rng.randrange(1, 60))))  # NUL ends a C text
            continue
        elif kind == 7:  # broken UTF-8: a text cut and pasted at bytes
            whole = (rng.choice(scripts) + rng.choice(emoji)).encode()
            a, b = sorted(rng.randrange(len(whole)) for _ in range(2))
            lines.append(whole[a:b] + rng.choice((b"", b" ", b"x")) + whole[:a] or b"x")
            continue
        elif kind == 8:
            line = "<" + rng.choice(("bos", "eos", "table", "start_of_turn", "|im_start|", "0x41", "unused1", "h1", "/b", "mask")) + ">" + rng.choice(scripts)
        else:
            lines.append(b"".join(rng.choice(words) + rng.choice((b" ", b"  ", b"", b"_", b"\xe2\x96\x81")) for _ in range(rng.randrange(1, 20))))
            continue
        lines.append(line.encode())
    assert len(lines) == LINES
    return lines


def ours(tool: str, command: str, path: str, lines: list[bytes]) -> list[str]:
    data = b"".join(struct.pack("<I", len(line)) + line for line in lines)
    return subprocess.run([tool, command, path], input=data, stdout=subprocess.PIPE, check=True).stdout.decode().splitlines()


def well_formed(line: bytes) -> bool:
    try:
        line.decode()
        return True
    except UnicodeDecodeError:
        return False


def llama_library():
    """A llama.cpp in a wheel: whichever package is there and loads."""
    from importlib.metadata import version
    try:
        from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib
        return "llama-cpp-py-sync " + version("llama-cpp-py-sync"), get_ffi(), get_lib()
    except (ImportError, RuntimeError):
        pass
    try:
        import _llama_cpp_cpu  # of llama-cpp-cffi; its folder on PYTHONPATH spares the package's own dependencies
        return "llama-cpp-cffi", _llama_cpp_cpu.ffi, _llama_cpp_cpu.lib
    except ImportError:
        return None


def llama_oracle(path):
    library = llama_library()
    if library is None:
        return None
    name, ffi, lib = library
    fields, _, _ = metadata(path)
    parameters = lib.llama_model_default_params()
    parameters.vocab_only = True
    model = lib.llama_model_load_from_file(path.encode(), parameters)
    vocabulary = lib.llama_model_get_vocab(model)

    def encode(line: bytes):
        if "tokenizer.ggml.merges" in fields and not well_formed(line):
            return None  # some versions end the program there
        room = len(line) * 4 + 16
        ids = ffi.new(f"llama_token[{room}]")
        n = lib.llama_tokenize(vocabulary, line, len(line), ids, room, False, False)
        return [ids[i] for i in range(n)]
    return f"llama.cpp ({name})", encode


def metadata(path):
    from gguf import GGUFReader
    fields = GGUFReader(path).fields
    texts = lambda key: [bytes(fields[key].parts[i]) for i in fields[key].data]
    numbers = lambda key: [fields[key].parts[i][0].item() for i in fields[key].data]
    return fields, texts, numbers


def byte_level_oracle(path):
    try:
        import regex
        import tokenizers
        from tokenizers.models import BPE
    except ImportError:
        return None
    fields, texts, _ = metadata(path)
    if "tokenizer.ggml.merges" not in fields:
        return None
    gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    llama3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    pre = texts("tokenizer.ggml.pre")[0].decode()
    pattern = {"smollm": gpt2, "gpt-2": gpt2, "llama-bpe": llama3, "qwen2": llama3.replace("{1,3}", "")}[pre]
    split = regex.compile(pattern)
    tokens = [t.decode() for t in texts("tokenizer.ggml.tokens")]
    merges = [tuple(m.decode().split(" ")) for m in texts("tokenizer.ggml.merges")]
    model = BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges, fuse_unk=False)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    alphabet = {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(others)}}

    def encode(line: bytes):
        text = line.decode("utf-8", "surrogateescape")
        stretches = regex.split(r"(\p{N})", text) if pre == "smollm" else [text]
        ids = []
        for stretch in stretches:
            for piece in split.findall(stretch):
                # Bytes without a token part what lies around them, as in llama.cpp.
                run = ""
                for letter in [alphabet[b] for b in piece.encode("utf-8", "surrogateescape")] + [None]:
                    if letter is None or model.token_to_id(letter) is None:
                        ids += [t.id for t in model.tokenize(run)] if run else []
                        run = ""
                    else:
                        run += letter
        return ids
    return f"tokenizers {tokenizers.__version__} behind regex {regex.__version__}", encode


def sentencepiece_oracle(path):
    try:
        import sentencepiece
        from sentencepiece import sentencepiece_model_pb2 as pb
    except ImportError:
        return None
    fields, texts, numbers = metadata(path)
    if "tokenizer.ggml.scores" not in fields:
        return None
    proto = pb.ModelProto()
    kinds = numbers("tokenizer.ggml.token_type")
    for text, score, kind in zip(texts("tokenizer.ggml.tokens"), numbers("tokenizer.ggml.scores"), kinds):
        piece = text.replace(b" ", "\u2581".encode()) if kind == 4 else text
        proto.pieces.add(piece=piece.decode(), score=score, type=kind)
    proto.trainer_spec.model_type = pb.TrainerSpec.BPE
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.unk_id = kinds.index(2) if 2 in kinds else 3
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = False
    proto.normalizer_spec.remove_extra_whitespaces = False
    proto.normalizer_spec.escape_whitespaces = True
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    return f"sentencepiece {sentencepiece.__version__}", lambda line: processor.EncodeAsIds(line.decode()) if well_formed(line) else None


def compare(tool: str, path: str) -> bool:
    lines = corpus()
    kept, dropping = ours(tool, "encode", path, lines), ours(tool, "encode-dropping", path, lines)
    count = Counter("refused" if k == "refused" else "differs" if k.startswith("differs") else "round trip" for k in kept)
    fields, texts, _ = metadata(path)
    byte_level = "tokenizer.ggml.merges" in fields
    spelled = {bytes(t) for t in texts("tokenizer.ggml.tokens")}
    print(f"{path}: {LINES} lines, {sum(map(len, lines))} bytes, {sum(not well_formed(line) for line in lines)} of them broken UTF-8")
    print(f"  came back: {count['round trip']}, refused for a byte without a token: {count['refused']}, different: {count['differs']}")
    good = count["differs"] == 0 and (byte_level or count["refused"] == 0)
    for oracle in (llama_oracle(path), byte_level_oracle(path), sentencepiece_oracle(path)):
        if oracle is None:
            continue
        name, encode = oracle
        result, shown = Counter(), 0
        for line, mine in zip(lines, dropping):
            theirs = encode(line)
            broken = not well_formed(line)
            if theirs is None:
                result["not asked (broken UTF-8)"] += 1
            elif mine.split() == [str(i) for i in theirs]:
                result["equal"] += 1
            elif b"\xe2\x96\x81" in line and not byte_level:
                result["set apart (U+2581 in the text)"] += 1
            elif broken and name.startswith("llama.cpp") and CUT_BEFORE_SPACE.search(line):
                result["set apart (broken UTF-8)"] += 1
            else:
                result["DIFFERENT"] += 1
                if shown < 5:
                    shown += 1
                    print(f"    {line[:200]!r}\n      ours   {mine}\n      theirs {' '.join(map(str, theirs))}")
        print(f"  {name}: {', '.join(f'{n} {what}' for what, n in result.most_common())}")
        good = good and result["DIFFERENT"] == 0
    return good


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(0 if all([compare(sys.argv[1], path) for path in sys.argv[2:]]) else 1)
