"""The references on arrays: a cache of one sequence under one method, every byte of its state by name."""
from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from . import _native
from .arrays import to_bytes, to_f32
from .catalogue import Method, MethodLike, Model, ModelLike


class Shape:
    """What a cache caches: equal attention layers, or the layers of a model.

    layers, q_heads, kv_heads, head_dim    q_heads is a multiple of kv_heads
    v_dim         width of a value; default: head_dim
    dtype         in which plain rows are stored: "bf16", "fp16" or "f32"; inputs are first rounded to it
    rope_base     base of the rotary embedding; None: keys and queries come rotated already (or need no rotation)
    rotary_dim    channels that rotate; default: all of head_dim
    interleaved   pairs (0, 1), (2, 3), ... instead of (i, i + rotary_dim / 2)
    window        newest tokens that a query sees; 0: all
    """

    def __init__(self, *, layers: int, q_heads: int, kv_heads: int, head_dim: int, v_dim: int | None = None, dtype: str = "bf16",
                 rope_base: float | None = 10000.0, rotary_dim: int | None = None, interleaved: bool = False, window: int = 0) -> None:
        rotating = 0 if rope_base is None else head_dim if rotary_dim is None else rotary_dim
        self._handle = _native.ShapeHandle(layers, q_heads, kv_heads, head_dim, head_dim if v_dim is None else v_dim, dtype,
                                           10000.0 if rope_base is None else float(rope_base), rotating, interleaved, window)

    @classmethod
    def of_model(cls, model: ModelLike) -> Shape:
        """The cache of a model, all its layers."""
        shape = cls.__new__(cls)
        shape._handle = _native.ShapeHandle.of_model(Model(model)._handle)
        return shape

    @property
    def layers(self) -> list[int]:
        """Indices of the layers that own rows."""
        return self._handle.layers()

    @property
    def dtype(self) -> str:
        return self._handle.dtype

    def dims(self, layer: int) -> dict[str, int]:
        """q_heads, kv_heads, k_dim and v_dim of a layer."""
        q_heads, kv_heads, k_dim, v_dim, _ = self._handle.dims(layer)
        return {"q_heads": q_heads, "kv_heads": kv_heads, "k_dim": k_dim, "v_dim": v_dim}

    def dense_bytes(self, tokens: int) -> int:
        """Bytes of the uncompressed cache of so many tokens."""
        return self._handle.dense_bytes(tokens)

    def __repr__(self) -> str:
        layers = self.layers
        return f"Shape(layers={len(layers)}, {', '.join(f'{k}={v}' for k, v in self.dims(layers[0]).items())}, dtype={self.dtype!r})"


@dataclass(frozen=True)
class BufferInfo:
    """What a buffer is for: ledger component, keys or values ("both", "key", "value"), and what one instance belongs to."""

    component: str
    side: str
    scope: str
    bytes: int


class Buffers(dict[str, np.ndarray]):
    """The packed buffers by name, uint8 [bytes]; ``info[name]`` says what each is for. ``Cache.load`` takes it back, or any
    mapping of names to bytes."""

    def __init__(self, arrays: Mapping[str, np.ndarray], info: Mapping[str, BufferInfo]) -> None:
        super().__init__(arrays)
        self.info = dict(info)

    @property
    def total_bytes(self) -> int:
        return sum(i.bytes for i in self.info.values())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes all buffers into one .npz file; ``dict(numpy.load(path))`` loads again."""
        np.savez(path, **self)  # type: ignore[arg-type]

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{escape(n)}</td><td>{escape(i.component)}</td><td>{i.side}</td><td>{i.scope}</td><td style='text-align:right'>{i.bytes:,}</td></tr>"
                       for n, i in self.info.items())
        return f"<table><tr><th>buffer</th><th>component</th><th>side</th><th>scope</th><th>bytes</th></tr>{rows}</table>"


class Cache:
    """One sequence's cache under a method: stores, attends, and counts every byte.

    method    recipe or :class:`Method`; keyword arguments are its parameters: ``Cache("kivi", shape, bits=2)``
    shape     :class:`Shape`, or a model (slug, path, :class:`Model`): all its layers
    trained   path of a safetensors file, or {name: array}, for methods that need trained parts
    seed      of methods with random parts

    A prompt goes through ``forward`` layer by layer, at once or in chunks; then ``end_prefill()``; then tokens one by one.
    Not thread-safe; other Python threads run while it computes. Ctrl-C ends a prompt between two rows: the cache is then to be
    opened anew or loaded from saved buffers.
    """

    def __init__(self, method: MethodLike, shape: Shape | ModelLike, *, trained: str | os.PathLike[str] | Mapping[str, Any] | None = None, seed: int = 0,
                 **params: Any) -> None:
        recipe = method if isinstance(method, Method) else Method(method)
        self.method: Method = recipe.with_params(**params) if params else recipe
        self.shape: Shape = shape if isinstance(shape, Shape) else Shape.of_model(shape)
        path = os.fspath(trained) if isinstance(trained, (str, os.PathLike)) else None
        tensors = {k: to_f32(k, v) for k, v in trained.items()} if isinstance(trained, Mapping) else None
        self._handle = _native.CacheHandle(str(self.method), self.shape._handle, path, tensors, seed)
        self._tokens: dict[int, int] = {}

    def forward(self, layer: int, q: Any, k: Any, v: Any, positions: Any = None, *, mask: Any = "causal", hidden: Any = None, sinks: Any = None,
                bf16: bool = False) -> np.ndarray:
        """Stores n tokens in a layer, attends, and updates the method's state, in the method's own order.

        q          [q_heads, n, k_dim], before RoPE; NumPy, or anything with DLPack in CPU memory
        k          [kv_heads, n, k_dim], before RoPE
        v          [kv_heads, n, v_dim]; None for latent rows
        positions  [n] int64, ascending; default: those that follow the tokens this layer has seen
        mask       "causal", "bidirectional", or a tree of uint8 [n, n] (row i marks the new tokens that token i sees)
        hidden     [n, hidden] hidden states, for methods that need them; sinks: [q_heads] learned sink logits
        bf16       uint16 arrays hold bfloat16 patterns (ml_dtypes and DLPack say so themselves)
        returns    [q_heads, n, v_dim] float32

        float32 with fitting strides is read where it lies; fp16, bf16 and float64 are widened once. NaN and infinity are refused
        before anything is written.
        """
        q_ = to_f32("q", q, bf16)
        n = q_.shape[1] if q_.ndim > 1 else 0
        first = self._tokens.get(layer, 0)
        at = np.arange(first, first + n, dtype=np.int64) if positions is None else np.ascontiguousarray(positions, dtype=np.int64)
        tree = None
        if not isinstance(mask, str):
            tree, mask = np.ascontiguousarray(mask, dtype=np.uint8), "tree"
        out = self._handle.forward(layer, q_, to_f32("k", k, bf16), np.empty((0, 0, 0), np.float32) if v is None else to_f32("v", v, bf16), at, mask, tree,
                                   None if hidden is None else to_f32("hidden", hidden, bf16), None if sinks is None else to_f32("sinks", sinks, bf16))
        self._tokens[layer] = int(at[-1]) + 1 if at.size else first
        return out

    def end_prefill(self) -> None:
        """The prompt is complete in all layers: methods that select or quantize once do it here."""
        self._handle.end_prefill()

    def notify(self, event: str, first: int = 0, last: int = 0) -> int | None:
        """Tells what no tensor says: "prompt_length" (``last`` tokens, before the first one), "span_over" (the tokens at positions
        first, ..., last - 1 have served), "turn" (what follows is a prompt again, until ``end_prefill()``).

        returns  the position from which the text must be forwarded once more, where the event makes rows behind it stale
        raises   NotImplementedError for an event that the method has no rule for: its record lists them in ``events``
        """
        again = self._handle.notify(event, first, last)
        if again is not None:
            self._tokens = {layer: min(n, again) for layer, n in self._tokens.items()}
        return again

    def crop(self, length: int) -> None:
        """Forgets every token at index >= length; NotImplementedError where the method cannot restore the earlier state."""
        self._handle.crop(length)
        self._tokens = {layer: min(n, length) for layer, n in self._tokens.items()}

    def buffers(self) -> Buffers:
        """ALL state, packed as it would be on a device."""
        raw = self._handle.buffers()
        return Buffers({n: b[0] for n, b in raw.items()}, {n: BufferInfo(b[1], b[2], b[3], b[0].nbytes) for n, b in raw.items()})

    def load(self, buffers: Mapping[str, Any]) -> None:
        """Replaces the state by buffers of a cache of the same method, parameters and shape.

        Positions that ``forward`` counts by itself are not part of the buffers: give ``positions`` after loading.
        """
        self._handle.load({n: to_bytes(b) for n, b in buffers.items()})
        self._tokens = {}

    def ledger(self) -> list[dict[str, Any]]:
        """Counted bytes: [{component, side, scope, bytes, provenance}]; their sum is ``stored_bytes``."""
        return self._handle.ledger()

    @property
    def stored_bytes(self) -> int:
        return sum(int(row["bytes"]) for row in self.ledger())

    def kept(self, layer: int, kv_head: int) -> int:
        """Tokens held for one kv head of one layer."""
        return self._handle.kept(layer, kv_head)

    def content_counts(self) -> dict[str, int]:
        """Counts that only the content can tell; empty unless the method is data-dependent."""
        return self._handle.content_counts()

    def __repr__(self) -> str:
        return f"Cache({str(self.method)!r}, {self.shape!r}, stored_bytes={self.stored_bytes})"
