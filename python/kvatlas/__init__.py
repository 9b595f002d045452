"""kvatlas: which KV-cache compression, at which setting, for your model, GPU and workload.

Catalogue   methods, presets, models, gpus, method, model, gpu
What if     simulate, breakeven, recommend, serve
References  Cache, Shape (the methods themselves, on your arrays)
Kernels     cases, case, check, compare (your outputs against the reference, bit by bit)
Stores      sweep, merge, open_store, import_results, report

Names are loaded when they are first used, so importing the package costs next to nothing. NumPy is the only package needed;
pandas, pyarrow, matplotlib and dask are imported where they are asked for. Errors are ValueError (the call is wrong),
NotImplementedError (legal, but not offered by this method), OSError (a file or the store), with the sentence of the C++ library.
"""
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "Gpu": "catalogue", "Method": "catalogue", "Model": "catalogue", "gpu": "catalogue", "gpus": "catalogue", "method": "catalogue",
    "methods": "catalogue", "model": "catalogue", "models": "catalogue", "presets": "catalogue", "storage": "catalogue",
    "breakeven": "what_if", "recommend": "what_if", "serve": "what_if", "simulate": "what_if",
    "Breakeven": "results", "Recommendations": "results", "Served": "results", "Simulation": "results", "SimulationTable": "results",
    "Buffers": "cache", "Cache": "cache", "Shape": "cache",
    "Case": "checking", "Check": "checking", "case": "checking", "cases": "checking", "check": "checking", "compare": "checking", "write_vectors": "checking",
    "Store": "store", "diff": "store", "open_store": "store",
    "merge": "sweeping", "plan": "sweeping", "sweep": "sweeping",
    "Imported": "importing", "import_results": "importing",
}
__all__ = sorted([*_HOME, "report", "__version__"])  # noqa: PLE0605

if TYPE_CHECKING:
    from .cache import Buffers, Cache, Shape
    from .catalogue import Gpu, Method, Model, gpu, gpus, method, methods, model, models, presets, storage
    from .checking import Case, Check, case, cases, check, compare, write_vectors
    from .importing import Imported, import_results
    from .results import Breakeven, Recommendations, Served, Simulation, SimulationTable
    from .store import Store, diff, open_store
    from .sweeping import merge, plan, sweep
    from .what_if import breakeven, recommend, serve, simulate


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = importlib.import_module("._native", __name__).__version__
    elif name == "report":
        value = importlib.import_module(".report", __name__).report
    elif name in _HOME:
        value = getattr(importlib.import_module("." + _HOME[name], __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
