"""Packs what `reader.read` returns into one compressed text that the page unpacks: JSON, and columns as binary arrays."""

from __future__ import annotations

import array
import base64
import json
import math
import sys
import zlib
from typing import Any, Dict, List, Tuple

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
        values = [math.nan if v is None else v for v in values]
    packed = array.array(code, values)
    if sys.byteorder == "big":
        packed.byteswap()
    raw = packed.tobytes()
    width = packed.itemsize
    return raw if width == 1 else b"".join(raw[i::width] for i in range(width))


def pack(data: Dict[str, Any]) -> str:
    """base64 of zlib of: 4 bytes length of the JSON, the JSON, the columns that its `columns` lists."""
    header: Dict[str, Any] = {k: v for k, v in data.items() if k not in _INTEGERS}
    header["columns"] = {}
    body: List[bytes] = []
    at = 0
    for table, integers in _INTEGERS.items():
        columns = dict(data[table])
        if table == "ledgers":
            columns["side"] = [_SIDES.index(s) for s in columns["side"]]
            integers = {**integers, "side": "B"}
        placed: Dict[str, Tuple[str, int, int]] = {}
        for name, values in columns.items():
            code = integers.get(name, "f")
            raw = _column(code, values)
            placed[name] = (code, at, len(values))
            body.append(raw)
            at += len(raw)
        header["columns"][table] = placed
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    blob = len(text).to_bytes(4, "little") + text + b"".join(body)
    return base64.b64encode(zlib.compress(blob, 9)).decode()
