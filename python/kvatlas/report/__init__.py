"""The report of a store: one self-contained HTML page, and the same figures for papers.

    from kvatlas.report import report
    report("atlas.sqlite", "report.html")
    report("atlas.sqlite", "report.html", figures="figures/")

Reads the store that `kvatlas sweep` writes and draws what it holds; no figure is computed here.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, Optional, Union

from .errors import StoreError
from .page import build
from .reader import read

__all__ = ["report", "read", "StoreError"]


def report(db: Union[str, Path], out: Union[str, Path] = "report.html", *, points: int = 100_000, title: Optional[str] = None,
           figures: Union[str, Path, None] = None) -> Dict[str, Any]:
    """Writes the page of a store.

    db       the store
    out      the page; replaced when it is there
    points   most decode steps that the page carries, 1000 to 1000000; beyond, contexts and batches are thinned, and the page says so
    title    of the page; the store's name without one
    figures  a folder: the figures also as SVG and PNG there (needs matplotlib)
    returns  {db, out, bytes, points, drawn, workloads, figures}
    raises   StoreError, an OSError, with one sentence: no store, a newer one, no Plotly, no matplotlib, no place to write
    """
    if isinstance(points, bool) or not isinstance(points, int) or not 1000 <= points <= 1_000_000:
        raise StoreError(f"points is {points!r}, must be a whole number from 1000 to 1000000")
    data = read(db, points)
    text = build(data, title)
    path = Path(out)
    part = path.with_name(path.name + ".part")
    drawn = []
    try:
        part.write_text(text, encoding="utf-8")
        # The old page stays until everything that was asked for is there.
        if figures is not None:
            from .figures import draw_all
            drawn = [str(p) for p in draw_all(data, figures)]
        os.replace(part, path)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    meta = data["meta"]
    return {"db": str(db), "out": str(path), "bytes": path.stat().st_size, "points": meta["points_total"], "drawn": meta["points_drawn"],
            "workloads": meta["workload_rows"], "figures": drawn}


class _Callable(ModuleType):
    """`kvatlas.report` is this module or the function, by who was imported first; calling either draws a report."""

    def __call__(self, db: Union[str, Path], out: Union[str, Path] = "report.html", **options: Any) -> Dict[str, Any]:
        return report(db, out, **options)


sys.modules[__name__].__class__ = _Callable
