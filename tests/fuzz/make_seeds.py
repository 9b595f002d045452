#!/usr/bin/env python3
"""Writes the first inputs of every fuzz target into tests/fuzz/corpus; findings and what a fuzzer adds lie beside them.

usage: make_seeds.py [FOLDER]
"""
import json
import re
import struct
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def gguf(metadata, tensors, version=3):
    """metadata: key -> (value type, bytes); tensors: name -> (dims, type, bytes)."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for key, (kind, value) in metadata.items():
        head += text(key.encode()) + struct.pack("<I", kind) + value
    data = b""
    for name, (dims, kind, value) in tensors.items():
        data += b"\0" * (-len(data) % 32)
        head += text(name.encode()) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, len(data))
        data += value
    return head + b"\0" * (-len(head) % 32) + data


def texts(values):
    return 9, struct.pack("<IQ", 8, len(values)) + b"".join(text(v.encode()) for v in values)


def numbers(kind, code, values):
    return 9, struct.pack(f"<IQ{len(values)}{code}", kind, len(values), *values)


def gguf_seeds():
    every = {"u8": (0, b"\1"), "i8": (1, b"\1"), "u16": (2, b"\1\0"), "i16": (3, b"\1\0"), "u32": (4, b"\1\0\0\0"), "i32": (5, b"\1\0\0\0"),
             "f32": (6, b"\0\0\x80\x3f"), "bool": (7, b"\1"), "text": (8, text(b"x")), "array": numbers(4, "I", [1, 2]), "u64": (10, b"\1" + b"\0" * 7),
             "i64": (11, b"\1" + b"\0" * 7), "f64": (12, b"\0" * 8), "nested": (9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 5, 1) + b"\0" * 4)}
    blocks = {2: 18, 3: 20, 6: 22, 7: 24, 8: 34, 12: 144, 13: 176, 14: 210, 0: 4, 1: 2, 30: 2}
    width = {12: 256, 13: 256, 14: 256, 0: 1, 1: 1, 30: 1}
    tokens = ["<unk>", "<s>", "</s>", "<0x41>", "\u2581", "a", "b", "ab", "\n"]
    score = {"tokenizer.ggml.model": (8, text(b"llama")), "tokenizer.ggml.tokens": texts(tokens), "tokenizer.ggml.scores": numbers(6, "f", range(9)),
             "tokenizer.ggml.token_type": numbers(5, "i", [2, 3, 3, 6, 1, 1, 1, 1, 4])}
    rank = {"tokenizer.ggml.model": (8, text(b"gpt2")), "tokenizer.ggml.pre": (8, text(b"smollm")), "tokenizer.ggml.tokens": texts(["a", "b", "ab", "\u0120", "<e>"]),
            "tokenizer.ggml.token_type": numbers(5, "i", [1, 1, 1, 1, 3]), "tokenizer.ggml.merges": texts(["a b"])}
    def decoder(arch, **changed):
        keys = {"embedding_length": (4, 32), "feed_forward_length": (4, 48), "block_count": (4, 2), "attention.head_count": (4, 4), "attention.head_count_kv": (4, 2),
                "attention.key_length": (4, 8), "attention.value_length": (4, 8), "context_length": (4, 64), "attention.layer_norm_rms_epsilon": (6, 1e-5), "rope.freq_base": (6, 1e4), **changed}
        metadata = {"general.architecture": (8, text(arch.encode())), "general.name": (8, text(b"a\xff\xfe"))}
        metadata.update({f"{arch}.{key}": (kind, struct.pack({4: "<I", 6: "<f", 11: "<q"}[kind], value)) for key, (kind, value) in keys.items()})
        return gguf(metadata, {"token_embd.weight": ([32, 3], 1, b"\0" * 192), "rope_freqs.weight": ([4], 0, struct.pack("<4f", 1, 1, 1, 8))} if arch == "llama" else {"token_embd.weight": ([32, 3], 1, b"\0" * 192)})
    decoders = {"decoder_llama": decoder("llama"), "decoder_gemma3": decoder("gemma3", **{"attention.sliding_window": (4, 16)}), "decoder_no_heads": decoder("qwen3", **{"attention.head_count": (4, 0)}),
                "decoder_overflow": decoder("qwen2", **{"embedding_length": (11, -2**63), "attention.head_count": (11, -1)}), "decoder_eps": decoder("qwen2", **{"attention.layer_norm_rms_epsilon": (6, float("nan"))}),
                "decoder_base": decoder("qwen3", **{"rope.freq_base": (6, float("inf"))})}
    return {**decoders, "kinds": gguf(every, {}), "tensors": gguf({"general.alignment": (4, b"\x20\0\0\0")}, {f"t{k}": ([width.get(k, 32), 2], k, b"\x11" * 2 * n) for k, n in blocks.items()}),
            "scalar": gguf({}, {"s": ([], 0, b"1234")}, 2), "score": gguf(score, {}), "rank": gguf(rank, {})}


def safetensors_seeds():
    def file(header, data=b""):
        head = json.dumps(header).encode()
        return struct.pack("<Q", len(head)) + head + data
    return {"two": file({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": {"dtype": "BF16", "shape": [1, 2], "data_offsets": [8, 12]}}, b"\0" * 12),
            "metadata": file({"__metadata__": {"format": "pt"}, "i": {"dtype": "I64", "shape": [], "data_offsets": [0, 8]}}, b"\0" * 8),
            "empty": file({}), "index": json.dumps({"metadata": {"total_size": 4}, "weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}).encode()}


def npy_seeds():
    def file(header, data, version=1):
        head = header.encode() + b"\n"
        return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(head)) + head + data
    return {"f4": file("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }", b"\0" * 24), "f2": file("{'descr': '<f2', 'fortran_order': False, 'shape': (1,), }", b"\0\x7c", 2),
            "i8": file("{'descr': '<i8', 'fortran_order': False, 'shape': (), }", b"\0" * 8), "b1": file("{'descr': '|b1', 'fortran_order': False, 'shape': (0, 4), }", b"", 3)}


def tokenizer_seeds():
    lines = ["", "Hello world", " it's 12  a\n\n\tb ", "Größe \u6771\u4eac \U0001f600", "<table>->    <s>\u2581", "x" * 40]
    broken = [b"\xc3 a\xff", b"\xe2\x96 \xf0\x9f\x98", b"\0\x01\x80"]
    return {f"{pick}_{i}": bytes([pick + 128 * (i % 2)]) + line for pick in range(7) for i, line in enumerate([t.encode() for t in lines] + broken) if i % 7 in (pick, (pick + 3) % 7)}


def tokenizer_json_seeds():
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "abb": 3}, "merges": ["a b", ["ab", "b"]], "ignore_merges": True}
    added = [{"id": 4, "content": "<s>", "special": True}, {"id": 5, "content": "ba", "special": False}]
    digits = [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "add_prefix_space": False}]
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]}
    return {"digits": json.dumps({"added_tokens": added, "pre_tokenizer": {"type": "Sequence", "pretokenizers": digits}, "model": model}).encode(),
            "begin": json.dumps({"added_tokens": added, "normalizer": {"type": "NFC"}, "pre_tokenizer": digits[1], "post_processor": template, "model": model}).encode()}


def config_seeds():
    names = ("smollm2-135m", "gemma-3-270m", "deepseek-v3", "gpt-oss-20b", "qwen3-next-80b-a3b", "kimi-linear-48b-a3b", "mpt-7b", "gpt-j-6b", "mixtral-8x7b", "qwen2.5-7b")
    return {name: (ROOT / "models/zoo" / f"{name}.json").read_bytes() for name in names}


def spec_seeds():
    small = {"name": "s", "models": ["smollm2-135m"], "gpus": ["rtx-4090"], "methods": ["full", "kivi:bits=2"], "contexts": "1K..4K+64", "batches": [1, 4]}
    return {"small": json.dumps(small).encode(), **{p.stem: p.read_bytes() for p in sorted((ROOT / "sweeps/examples").glob("*.json"))}}


def cached_methods():
    """Slugs of the methods that open a cache, out of their records."""
    slugs = []
    for source in sorted((ROOT / "reference").rglob("*.cpp")):
        for record in re.split(r"constinit const Method ", source.read_text(encoding="utf-8"))[1:]:
            slug = re.search(r'\.slug = "(\w+)"', record)
            if slug and re.search(r"\.open = (?!nullptr)", record):
                slugs.append(slug.group(1))
    return sorted(slugs)


def cache_seeds():
    edits = [b"", bytes([0, 0, 128, 255]), bytes([1, 1, 100, 0]), bytes([2, 2, 7, 40]), bytes([3, 1, 0, 2]), bytes([4, 3, 0, 255, 4, 2, 0, 127]), bytes([5, 1, 0, 2])]
    pick = {slug: sum(slug.encode()) for slug in cached_methods()}  # of the name alone: a new method changes no other input
    return {slug: slug.encode() + b"\n" + bytes([n % 2]) + edits[n % 7] for slug, n in pick.items()}


def main(folder: Path) -> None:
    seeds = {"gguf": gguf_seeds(), "safetensors": safetensors_seeds(), "npy": npy_seeds(), "tokenizer": tokenizer_seeds(), "tokenizer_json": tokenizer_json_seeds(), "config": config_seeds(),
             "spec": spec_seeds(), "cache": cache_seeds()}
    for target, files in seeds.items():
        (folder / target).mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / target / name).write_bytes(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "corpus")
