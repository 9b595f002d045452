"""Makes the tiny random models of this folder and their logits with transformers, in float32 on the CPU.

    python make_forward.py        (transformers 5.23.0, torch 2.15.0, safetensors 0.8.0)

Each model is a few kilobytes: config.json, model.safetensors (bfloat16 weights, so that float32 holds them exactly) and
expected.safetensors with `tokens` [n] and `logits` [n, vocabulary]. The attention is transformers' "eager" one.
"""
import json
import pathlib

import torch
import transformers
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
SIZES = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
             vocab_size=50, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2)
MODELS = {
    "llama": (transformers.LlamaConfig, dict(rope_parameters={"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0,
              "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
              rms_norm_eps=1e-5, tie_word_embeddings=True)),
    "mistral": (transformers.MistralConfig, dict(sliding_window=9, head_dim=12, tie_word_embeddings=False)),
    "qwen2": (transformers.Qwen2Config, dict(rope_theta=1e6, tie_word_embeddings=False)),
    "qwen3": (transformers.Qwen3Config, dict(head_dim=16, tie_word_embeddings=True)),
    "gemma3_text": (transformers.Gemma3TextConfig, dict(head_dim=16, num_key_value_heads=1, sliding_window=7,
                    query_pre_attn_scalar=24, tie_word_embeddings=True,
                    layer_types=["sliding_attention", "sliding_attention", "full_attention"])),
}


def main():
    for name, (config_class, more) in MODELS.items():
        torch.manual_seed(len(name))
        config = config_class(**{**SIZES, **more}, attn_implementation="eager")
        model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
        with torch.no_grad():
            for key, p in model.named_parameters():
                std = 0.3 if "norm" in key else 0.35 if p.dim() == 1 else 0.25
                p.copy_((torch.randn_like(p) * std + (1.0 if "norm" in key and name != "gemma3_text" else 0.0)).bfloat16().float())
        tokens = torch.randint(0, SIZES["vocab_size"], (40,))
        with torch.no_grad():
            logits = model(tokens[None]).logits[0]
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        state = {k: v.bfloat16().contiguous() for k, v in model.state_dict().items()}
        if config.tie_word_embeddings:
            state.pop("lm_head.weight", None)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        save_file({"tokens": tokens.to(torch.int64), "logits": logits.float().contiguous()}, folder / "expected.safetensors")
        kept = {k: v for k, v in config.to_dict().items() if k not in ("_attn_implementation_internal", "transformers_version")}
        kept["torch_dtype"] = "float32"
        kept.pop("dtype", None)
        (folder / "config.json").write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
        print(name, sum(p.numel() for p in model.parameters()), "parameters")


main()
