"""Dumps queries, keys and values of your own model, so that kvatlas can try every method on them without its weights.

    python kv_passport.py --model PATH --text FILE [FILE ...] --layers 0 8 15 --tokens 2048 --out DIR
    kvatlas evaluate --capture DIR

Works with any decoder whose attention calls torch's scaled_dot_product_attention once a layer (in transformers: the
default, attn_implementation="sdpa"); for another model call `capture` yourself. What is written: python/examples/README.md.
"""
import argparse
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file


def capture(forward, out, model, prompt, layers, kv_heads, windows=None):
    """Runs forward() once and writes <prompt>.layer<N>.safetensors for each listed layer, counted by its calls of attention."""
    attention, call = F.scaled_dot_product_attention, -1

    def spy(q, k, v, *args, **kwargs):
        nonlocal call
        call += 1
        if call in layers:
            every = k.shape[1] // kv_heads  # callers without grouped attention repeat every kv head
            rows = {"q": q[0], "k": k[0, ::every], "v": v[0, ::every]}  # [heads, tokens, head_dim], after RoPE
            facts = {"format": "kvatlas capture 1", "model": model, "prompt": prompt, "layer": str(call), "rope": "after"}
            if kwargs.get("scale"):
                facts["score_scale"] = repr(float(kwargs["scale"]))
            if windows and windows.get(call):
                facts["window"] = str(windows[call])
            save_file({n: x.detach().float().cpu().contiguous() for n, x in rows.items()}, out / f"{prompt}.layer{call}.safetensors", facts)
        return attention(q, k, v, *args, **kwargs)

    F.scaled_dot_product_attention = spy
    try:
        with torch.no_grad():
            forward()
    finally:
        F.scaled_dot_product_attention = attention
    if call < max(layers):
        raise ValueError(f"layer is {max(layers)}, must be below {call + 1}, the number of attention calls of this model")


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
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or []
    windows = {i: config.sliding_window for i, kind in enumerate(kinds) if kind == "sliding_attention"}
    args.out.mkdir(parents=True, exist_ok=True)
    for text in args.text:
        ids = tokenizer(text.read_text(), return_tensors="pt").input_ids[:, : args.tokens]
        capture(lambda ids=ids: model(ids, use_cache=False), args.out, pathlib.Path(args.model).name, text.stem, set(args.layers), config.num_key_value_heads, windows)


if __name__ == "__main__":
    main()
