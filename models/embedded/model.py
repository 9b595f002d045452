"""The embedded model: a plain Llama (RMSNorm, RoPE, grouped heads, SwiGLU, tied embedding) over bytes, with the tensor
names of Hugging Face. Tokens 0..255 are bytes, 256 begins a text, 257 is never used."""
import torch
import torch.nn.functional as F

BOS = 256
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "float16",
    "hidden_size": 192,
    "intermediate_size": 576,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 258,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rms_norm_eps": 1e-05,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": BOS,
    "eos_token_id": 257,
}


def shapes(c):
    """Every tensor by its Hugging Face name."""
    d, q, kv, f = c["hidden_size"], c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"], c["intermediate_size"]
    out = {"model.embed_tokens.weight": (c["vocab_size"], d), "model.norm.weight": (d,)}
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        out |= {p + "input_layernorm.weight": (d,), p + "post_attention_layernorm.weight": (d,),
                p + "self_attn.q_proj.weight": (q, d), p + "self_attn.k_proj.weight": (kv, d),
                p + "self_attn.v_proj.weight": (kv, d), p + "self_attn.o_proj.weight": (d, q),
                p + "mlp.gate_proj.weight": (f, d), p + "mlp.up_proj.weight": (f, d), p + "mlp.down_proj.weight": (d, f)}
    return out


def initial(c, seed):
    """Normal weights of variance 1 / inputs; what writes into the residual stream starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, shape in shapes(c).items():
        if len(shape) == 1:
            out[name] = torch.ones(shape)
        elif "o_proj" in name or "down_proj" in name:
            out[name] = torch.zeros(shape)
        else:
            scale = 0.02 if "embed" in name else shape[1] ** -0.5
            out[name] = torch.randn(shape, generator=generator) * scale
    return out


def rope_tables(c, context):
    half = c["head_dim"] // 2
    angle = torch.outer(torch.arange(context).double(), c["rope_theta"] ** (-torch.arange(half).double() / half))
    return angle.cos().float(), angle.sin().float()


def rotate(x, cos, sin):
    """x [batch, heads, context, head_dim]; channel i turns with channel i + head_dim / 2."""
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


def norm(x, weight, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def forward(w, c, tokens, tables, dtype=torch.float32, mask=None, tap=None):
    """Logits [batch, context, vocab]. mask [context, context] is true where a query may look; None is causal.
    tap(layer, q, k, v) sees queries and keys after RoPE and the values, [batch, heads, context, head_dim]."""
    batch, context = tokens.shape
    heads, kv_heads, dim, eps = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"], c["rms_norm_eps"]
    cos, sin = tables[0][:context], tables[1][:context]
    x = F.embedding(tokens, w["model.embed_tokens.weight"])
    for i in range(c["num_hidden_layers"]):
        t = {n: w[f"model.layers.{i}.{n}.weight"] for n in ("input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj",
                                                            "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")}
        h = norm(x, t["input_layernorm"], eps).to(dtype)
        q = rotate(F.linear(h, t["self_attn.q_proj"].to(dtype)).view(batch, context, heads, dim).transpose(1, 2), cos, sin)
        k = rotate(F.linear(h, t["self_attn.k_proj"].to(dtype)).view(batch, context, kv_heads, dim).transpose(1, 2), cos, sin)
        v = F.linear(h, t["self_attn.v_proj"].to(dtype)).view(batch, context, kv_heads, dim).transpose(1, 2)
        if tap is not None:
            tap(i, q, k, v)
        group = heads // kv_heads
        o = F.scaled_dot_product_attention(q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), attn_mask=mask, is_causal=mask is None)
        o = o.transpose(1, 2).reshape(batch, context, heads * dim)
        x = x + F.linear(o, t["self_attn.o_proj"].to(dtype)).float()
        h = norm(x, t["post_attention_layernorm"], eps).to(dtype)
        h = F.silu(F.linear(h, t["mlp.gate_proj"].to(dtype))) * F.linear(h, t["mlp.up_proj"].to(dtype))
        x = x + F.linear(h, t["mlp.down_proj"].to(dtype)).float()
    x = norm(x, w["model.norm.weight"], eps).to(dtype)
    return F.linear(x, w["model.embed_tokens.weight"].to(dtype)).float()
