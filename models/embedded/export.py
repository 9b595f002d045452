"""Writes a checkpoint as the files that are shipped: model.safetensors (F16, Hugging Face names) and config.json.

    python export.py --checkpoint DIR/checkpoint.pt --out FOLDER
"""
import argparse
import json
import pathlib
import struct

import torch

LIMIT = 4_000_000  # bytes of all files


def safetensors(weights):
    """Tensors in the order of their names, so that equal weights make equal bytes."""
    header, at, parts = {"__metadata__": {"format": "pt"}}, 0, []
    for name in sorted(weights):
        data = weights[name].half().contiguous().numpy().astype("<f2").tobytes()
        header[name] = {"dtype": "F16", "shape": list(weights[name].shape), "data_offsets": [at, at + len(data)]}
        parts.append(data)
        at += len(data)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + b"".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    saved = torch.load(args.checkpoint, weights_only=True)
    worst = max(float((w.half().float() - w).abs().max()) for w in saved["weights"].values())
    tensors = safetensors(saved["weights"])
    ours = {"slug": "kvatlas-embedded", "name": "kvatlas embedded model", "source": "models/embedded/train.py, "
            f"{saved['step']} steps, {saved['tokens']} bytes"}
    config = json.dumps({"kvatlas": ours, **saved["config"]}, indent=2).encode() + b"\n"
    size = len(tensors) + len(config)
    if size > LIMIT:
        raise SystemExit(f"the files take {size} bytes, at most {LIMIT} are allowed")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "model.safetensors").write_bytes(tensors)
    (args.out / "config.json").write_bytes(config)
    print(f"{size} bytes; largest change of a weight by F16: {worst:.2e}")


if __name__ == "__main__":
    main()
