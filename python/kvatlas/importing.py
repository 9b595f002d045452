"""Evidence of other tools: their result files as rows with provenance ``imported``, matched to our names; the rest is listed."""
from __future__ import annotations

import os
from typing import Any

from . import _native
from .catalogue import GpuLike, MethodLike
from .results import Record, _pandas, _table


class Imported(Record):
    """tool, file, rows (their number), imported [{model, gpu, recipe, metric, value, setup, provenance}], unmatched [{field, name, why, rows}]."""

    def to_pandas(self) -> Any:
        """One row a figure."""
        return _pandas().DataFrame(self["imported"])

    def __repr__(self) -> str:
        lost = "; ".join(f"{u['field']} {u['name']!r}: {u['why']} ({u['rows']} rows)" for u in self["unmatched"])
        return f"Imported({self['rows']} rows of {self['tool']}{', unmatched: ' + lost if lost else ''})"

    def _repr_html_(self) -> str:
        shown = self["imported"][:20]
        columns = ["model", "gpu", "recipe", "metric", "value"]
        lost = _table("unmatched", ["field", "name", "why", "rows"], [[u["field"], u["name"], u["why"], u["rows"]] for u in self["unmatched"]]) if self["unmatched"] else ""
        return _table(f"{self['rows']} rows of {self['tool']}", columns, [[r[c] for c in columns] for r in shown]) + lost


def import_results(kind: str, file: str | os.PathLike[str], *, db: str | os.PathLike[str] | None = None, model: str | None = None, gpu: GpuLike | None = None,
                   method: MethodLike | None = None) -> Imported:
    """Reads a result file of another tool; with ``db`` the rows are stored, in place of an earlier import of the same file.

    kind                kvpress-results, lm-eval, vllm-bench, llama-bench or aiconfigurator
    model, gpu, method  what the file does not say, for all its rows; names that are none of ours are listed, never guessed
    """
    texts = [None if v is None else str(v) for v in (model, gpu, method)]
    return Imported(_native.import_results(kind, os.fspath(file), None if db is None else os.fspath(db), *texts))
