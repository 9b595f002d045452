"""Arrays at the door: NumPy or anything with DLPack, read in place where it is float32 of fitting strides, widened exactly otherwise."""
from __future__ import annotations

from typing import Any

import numpy as np

from . import _native


def bf16_to_f32(patterns: np.ndarray) -> np.ndarray:
    """uint16 patterns of bfloat16 as float32; exact."""
    return (patterns.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(values: np.ndarray) -> np.ndarray:
    """float32 rounded to bfloat16 (to nearest even), as uint16 patterns."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded >> 16).astype(np.uint16)


def to_bytes(buffer: Any) -> np.ndarray:
    """uint8 [bytes] over the memory of bytes, of anything like them, or of a dense array; empty ones too."""
    if isinstance(buffer, (bytes, bytearray, memoryview)):
        return np.frombuffer(buffer, np.uint8) if len(buffer) else np.empty(0, np.uint8)
    return np.ascontiguousarray(buffer).reshape(-1).view(np.uint8)


def to_f32(name: str, array: Any, bf16: bool = False) -> np.ndarray:
    """float32 of the same shape over the same memory where possible; a copy otherwise.

    In place: float32, innermost axis dense, the other axes at any stride that does not go back (slices; ``[n, heads, dim]`` seen as
    ``[heads, n, dim]``; one head broadcast to several).
    fp16, bf16 and float64 (rounded) are widened once. ``bf16`` says that uint16 words are bfloat16 patterns.
    """
    if not isinstance(array, np.ndarray):
        if hasattr(array, "__dlpack__"):
            array, is_bf16 = _native.from_dlpack(array)
            bf16 = bf16 or is_bf16
        else:
            array = np.asarray(array)
    if array.dtype.name == "bfloat16":  # ml_dtypes, without importing it
        array, bf16 = array.view(np.uint16), True
    if bf16 and array.dtype == np.uint16:
        return bf16_to_f32(array)
    if array.dtype == np.float32:
        return array if array.ndim and _native.viewable(array) else np.ascontiguousarray(array)
    if array.dtype.kind == "f" or array.dtype.kind in "iu" and array.size == 0:
        return np.ascontiguousarray(array, dtype=np.float32)
    raise ValueError(f"{name} is an array of {array.dtype}, must be float32, float16, float64 or bfloat16")
