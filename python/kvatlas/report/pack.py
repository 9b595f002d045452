"""Packs what `reader.read` returns into one compressed text that the page unpacks: JSON, and columns as binary arrays."""

from __future__ import annotations

import array
import base64
import json
import math
import sys
import zlib
from typing import Any, Dict, List, Tuple

from .errors import StoreError

# Tables whose columns travel as arrays; the width of each column that is not a 32-bit float.
_INTEGERS = {
    "configurations": {"model": "H", "gpu": "H", "method": "H", "scenario": "H", "plan": "B"},
    "points": {"configuration": "I", "context": "I", "batch": "I", "bound": "B", "evidence": "B", "fits": "B"},
    "served": {"configuration": "I", "workload": "H", "bound": "B", "evidence": "B", "feasible": "B", "why_not": "I"},
    "infeasible": {"configuration": "I", "context": "I", "sentence": "I"},
    "caches": {"model": "H", "method": "H", "context": "I", "forgets": "B"},
    "ledgers": {"model": "H", "method": "H", "context": "I", "component": "B"},
}
_SIDES = ("both", "key", "value")


def _column(code: str, values: Any) -> bytes:
    """Little-endian bytes, plane by plane: equal bytes of neighbours stand together and compress three times better."""
    if code == "f":
        if any(v is not None and math.isinf(v) for v in values):
            raise ValueError("an infinite figure")
        values = [math.nan if v is None else v for v in values]
    packed = array.array(code, values)
    if sys.byteorder == "big":
        packed.byteswap()
    raw = packed.tobytes()
    width = packed.itemsize
    return raw if width == 1 else b"".join(raw[i::width] for i in range(width))


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else "a value out of range" if isinstance(error, OverflowError) else "an empty cell or a text where a number belongs"


def pack(data: Dict[str, Any]) -> str:
    """base64 of zlib of: 4 bytes length of the JSON, the JSON, the columns that its `columns` lists."""
    header: Dict[str, Any] = {k: v for k, v in data.items() if k not in _INTEGERS}
    header["columns"] = {}
    body: List[bytes] = []
    at = 0
    for table, integers in _INTEGERS.items():
        columns = dict(data[table])
        if table == "ledgers":
            unknown = next((s for s in columns["side"] if s not in _SIDES), None)
            if unknown is not None:
                raise StoreError(f"the column side of ledgers cannot be drawn: it holds {unknown!r}, allowed are {', '.join(_SIDES)}")
            columns["side"] = [_SIDES.index(s) for s in columns["side"]]
            integers = {**integers, "side": "B"}
        placed: Dict[str, Tuple[str, int, int]] = {}
        for name, values in columns.items():
            code = integers.get(name, "f")
            try:
                raw = _column(code, values)
            except (ValueError, TypeError, OverflowError) as error:
                raise StoreError(f"the column {name} of {table} cannot be drawn: it holds {_reason(error)}") from None
            placed[name] = (code, at, len(values))
            body.append(raw)
            at += len(raw)
        header["columns"][table] = placed
    try:
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8", "replace")
    except (ValueError, TypeError):
        raise StoreError("a figure of quality, validation, measurements or claims is infinite or no number: it cannot be drawn") from None
    blob = len(text).to_bytes(4, "little") + text + b"".join(body)
    return base64.b64encode(zlib.compress(blob, 9)).decode()
