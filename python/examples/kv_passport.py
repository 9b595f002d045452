"""Dumps queries, keys and values of your own model, so that kvatlas can try every method on them without its weights.

    python kv_passport.py --model PATH --text FILE [FILE ...] --layers 0 8 15 --tokens 2048 --out DIR
    kvatlas evaluate --capture DIR

Works with any decoder whose attention calls torch's scaled_dot_product_attention once a layer (in transformers: the
default, attn_implementation="sdpa"); for another model call `capture` yourself. DIR/README: python/examples/README.md.
"""
import argparse
import json
import pathlib

import numpy as np
import torch
import torch.nn.functional as F


def capture(forward, prompt, layers, kv_heads, out, queries=64):
    """Runs forward() once and writes q, k, v of the listed layers (counted by calls) as `prompt`.L<layer>.<q|k|v>.npy.
    Keys and values are whole; queries are those of `queries` positions, spread evenly and always with the last one."""
    attention, call, facts = F.scaled_dot_product_attention, -1, {}

    def spy(q, k, v, *args, **kwargs):
        nonlocal call
        call += 1
        if call in layers:
            at = np.unique(np.linspace(0, q.shape[2] - 1, queries).round().astype(int))
            step = k.shape[1] // kv_heads  # callers without grouped attention repeat every kv head
            for name, x in (("q", q[0][:, at]), ("k", k[0, ::step]), ("v", v[0, ::step])):
                np.save(out / f"{prompt}.L{call}.{name}.npy", x.detach().transpose(0, 1).float().contiguous().cpu().numpy())
            facts.update(tokens=q.shape[2], q_heads=q.shape[1], scale=kwargs.get("scale") or q.shape[3] ** -0.5, positions=at.tolist())
        return attention(q, k, v, *args, **kwargs)

    F.scaled_dot_product_attention = spy
    try:
        with torch.no_grad():
            forward()
    finally:
        F.scaled_dot_product_attention = attention
    return {"prompt": prompt, "layers": sorted(layers), "kv_heads": kv_heads, **facts}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", nargs="+", type=pathlib.Path, required=True)
    parser.add_argument("--layers", nargs="+", type=int, required=True)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, attn_implementation="sdpa").eval()
    args.out.mkdir(parents=True, exist_ok=True)
    prompts = []
    for text in args.text:
        ids = tokenizer(text.read_text(), return_tensors="pt").input_ids[:, : args.tokens]
        prompts.append(capture(lambda ids=ids: model(ids, use_cache=False), text.stem, set(args.layers), model.config.get_text_config().num_key_value_heads, args.out))
    manifest = {"format": "kvatlas-passport", "version": 1, "model": args.model, "config": model.config.to_dict(), "prompts": prompts}
    (args.out / "passport.json").write_text(json.dumps(manifest, indent=1, default=str))


if __name__ == "__main__":
    main()
