"""kvpress' presses on bare tensors, without a model: what test_kvpress.py compares and tests/bench/kvpress_speed.py times. Needs torch and kvpress.

Queries are their hidden states (the projection is the identity), so both sides start from the same queries, keys and values."""
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

ROPE_BASE = 10000.0


class Rotary:
    """Rotary embedding as kvpress asks a model for it; base None: no rotation."""

    def __init__(self, dim: int, base: float | None) -> None:
        self.inv_freq = torch.zeros(dim // 2) if base is None else base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)

    def __call__(self, like: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = positions[..., None].double() * self.inv_freq
        angles = torch.cat([angles, angles], -1)
        return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class Problem:
    """Random queries [q_heads, n, dim], keys and values [kv_heads, n, dim] before RoPE, and one attention layer as kvpress sees it."""

    def __init__(self, rng: np.random.Generator, q_heads: int, kv_heads: int, tokens: int, dim: int, layer: int = 0, layers: int = 1,
                 rope_base: float | None = ROPE_BASE) -> None:
        draw = lambda heads: rng.standard_normal((heads, tokens, dim), dtype=np.float32)
        self.q, self.k, self.v = draw(q_heads), draw(kv_heads), draw(kv_heads)
        self.k *= rng.lognormal(0, 0.5, self.k.shape[:2] + (1,)).astype(np.float32)  # tokens that differ in weight
        self.rng, self.tokens, self.layer, self.layers = rng, tokens, layer, layers
        self.rotary = Rotary(dim, rope_base)
        self.positions = self.rotary(torch.from_numpy(self.q), torch.arange(tokens)[None])
        self.values = torch.from_numpy(self.v)[None]
        self.keys = rotated(torch.from_numpy(self.k)[None], *self.positions)
        self.hidden = torch.from_numpy(np.ascontiguousarray(self.q.transpose(1, 0, 2))).reshape(1, tokens, q_heads * dim)
        self.w_o = torch.from_numpy(rng.standard_normal((dim, q_heads * dim), dtype=np.float32))
        self.module = SimpleNamespace(
            config=SimpleNamespace(num_attention_heads=q_heads, num_key_value_heads=kv_heads, num_hidden_layers=layers, head_dim=dim, hidden_size=dim, _attn_implementation="sdpa"),
            head_dim=dim, layer_idx=layer, num_key_value_groups=q_heads // kv_heads, q_proj=lambda h: h, rotary_emb=self.rotary,
            o_proj=SimpleNamespace(weight=self.w_o))

    def attention(self) -> torch.Tensor:
        """[1, q_heads, n, n]: causal attention weights."""
        q = rotated(torch.from_numpy(self.q)[None], *self.positions)
        logits = q @ self.keys.repeat_interleave(self.module.num_key_value_groups, 1).transpose(2, 3) / self.q.shape[-1] ** 0.5
        return torch.softmax(logits + torch.triu(torch.full(logits.shape[-2:], float("-inf")), 1), -1)

    def words(self) -> dict[str, Any]:
        return {"position_embeddings": self.positions, "hidden_states": self.hidden}

    def compress(self, press: Any, attention: torch.Tensor | None = None, keys: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The press' keys and values; keys: a copy of ours, since some presses write into what they get."""
        self.module.masked_key_indices = None
        with torch.no_grad():
            return press.compress(self.module, self.hidden, self.keys.clone() if keys is None else keys, self.values, attention, self.words())

    def kept(self, press: Any, attention: torch.Tensor | None = None) -> list[list[int]]:
        """Tokens that the press keeps, ascending, for each kv head."""
        _, values = self.compress(press, attention)
        kept = rows_of(self.v, [values[0, h].numpy() for h in range(values.shape[1])])
        if self.module.masked_key_indices is not None:  # presses with heads of different lengths mask instead of dropping
            _, heads, tokens = (x.tolist() for x in self.module.masked_key_indices)
            gone = set(zip(heads, tokens))
            kept = [[t for t in row if (h, t) not in gone] for h, row in enumerate(kept)]
        return kept

    def scores(self, press: Any, attention: torch.Tensor | None = None) -> np.ndarray:
        """[kv_heads, n]: what the press (or the one inside it) ranks tokens by."""
        inner = getattr(press, "press", press)
        with torch.no_grad():
            return inner.score(self.module, self.hidden, self.keys, self.values, attention, self.words())[0].numpy()


def rows_of(fed: np.ndarray, heads: list[np.ndarray]) -> list[list[int]]:
    """Which rows of fed [kv_heads, n, dim] each head's rows are, ascending; every row is told from all others by its bytes."""
    kept = []
    for all_rows, rows in zip(np.repeat(fed, len(heads) // len(fed), axis=0), heads):
        place = {row.tobytes(): t for t, row in enumerate(all_rows)}
        kept.append(sorted(place[row.tobytes()] for row in np.ascontiguousarray(rows)))
    return kept
