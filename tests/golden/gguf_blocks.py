#!/usr/bin/env python3
"""Records blocks of the `gguf` Python package as a source folder for select.py.

  gguf_blocks.py OUT    writes OUT/gguf and OUT/gguf_weights (manifest.json and cases); then: select.py OUT --slugs gguf gguf_weights

Needs numpy and gguf. The package codes and decodes every type but iq4_nl, which it only decodes: its blocks are random bytes.
"""
import json
import sys

sys.path.pop(0)  # select.py of this folder is not the module `select`
from importlib.metadata import version
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

BOTH = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "mxfp4")
# What weight files hold: random bytes of each, decoded. The positions of fp16 fields, whose values are kept finite.
WEIGHTS = {"f32": (), "f16": (0,), "bf16": (), "q4_0": (0,), "q4_1": (0, 2), "q5_0": (0,), "q5_1": (0, 2), "q8_0": (0,),
           "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,)}


def entry(functions, parameters, arrays):
    return {"official_file": "gguf/quants.py", "functions_run": functions, "parameters": parameters,
            "arrays": {k: {"axes": axes, "meaning": meaning, "check": "exact"} for k, (axes, meaning) in arrays.items()}}


def main(out):
    folder = Path(out) / "gguf"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(20260401)
    x = rng.standard_normal((12, 64)).astype(np.float32)
    x[1] *= 1e-3
    x[2, :32] = 0
    x[3, 5] *= 40
    x[4] = np.round(x[4] * 8) / 8
    x[5, :32] = 1.5
    arrays, described = {"x": x}, {"x": ("row, channel", "input")}
    for name in BOTH:
        kind = getattr(GGMLQuantizationType, name.upper())
        blocks = quants.quantize(x, kind)
        arrays[f"{name}_blocks"] = blocks.reshape(12, -1)
        arrays[f"{name}_decode"] = quants.dequantize(blocks, kind).reshape(12, 64)
        described[f"{name}_blocks"] = ("row, byte", "blocks of a row")
        described[f"{name}_decode"] = ("row, channel", "decoded values")
    np.savez(folder / "quantize.npz", **arrays)
    blocks = rng.integers(0, 256, (8, 36), dtype=np.uint8)
    blocks[:, 1::18] &= 0x3B  # finite scales
    decode = {"iq4_nl_blocks": blocks, "iq4_nl_decode": quants.dequantize(blocks, GGMLQuantizationType.IQ4_NL).reshape(8, 64)}
    np.savez(folder / "decode.npz", **decode)
    cases = {"quantize.npz": entry(["quantize", "dequantize"], {"types": list(BOTH), "head_dim": 64}, described),
             "decode.npz": entry(["dequantize"], {"types": ["iq4_nl"], "head_dim": 64},
                                 {"iq4_nl_blocks": ("row, byte", "input"), "iq4_nl_decode": ("row, channel", "decoded values")})}
    (folder / "manifest.json").write_text(json.dumps(
        {"method": "gguf", "repository": "the Python package gguf", "commit": f"version {version('gguf')}", "cases": cases}, indent=1))
    weights(Path(out) / "gguf_weights")


def weights(folder):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(20260402)
    arrays, described = {}, {}
    for name, halves in WEIGHTS.items():
        kind = GGMLQuantizationType[name.upper()]
        values, size = GGML_QUANT_SIZES[kind]
        count = 6 if values == 256 else 16 if values == 32 else 64
        if name == "f32":
            blocks = rng.standard_normal((count, 1)).astype(np.float32)
            blocks[:4, 0] = 0.0, -0.0, 1e-40, -3.4e38
        elif name == "bf16":
            blocks = rng.integers(0, 0x7F80, (count, 1), dtype=np.uint16).view(np.uint8) ^ np.array([0, 0x80], np.uint8)
        else:
            blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
            for h in halves:
                blocks[:, h + 1] &= 0xBB  # exponent at most 27
            blocks[0] = 0
            blocks[1, halves[0]:halves[0] + 2] = 1, 0  # the smallest subnormal
            blocks[2, halves[0]:halves[0] + 2] = 0, 0x80  # -0
        decoded = quants.dequantize(blocks, kind)
        arrays[f"{name}_blocks"] = blocks.view(np.uint8).reshape(count, size)
        arrays[f"{name}_decode"] = decoded.astype(np.float32).reshape(count, values)
        described[f"{name}_blocks"] = ("block, byte", "blocks")
        described[f"{name}_decode"] = ("block, value", "decoded values")
    np.savez(folder / "blocks.npz", **arrays)
    (folder / "manifest.json").write_text(json.dumps(
        {"method": "gguf_weights", "repository": "the Python package gguf", "commit": f"version {version('gguf')}",
         "cases": {"blocks.npz": entry(["dequantize"], {"types": list(WEIGHTS)}, described)}}, indent=1))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
