"""The store of a sweep: one SQLite file; fronts, conditions, your own SQL, and frames."""
from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from . import _native
from .results import _pandas, _table

if TYPE_CHECKING:
    import pandas


class Rows(Sequence[dict[str, Any]]):
    """Rows of a query as dicts."""

    def __init__(self, columns: list[str], rows: list[tuple[Any, ...]]) -> None:
        self.columns, self._rows = columns, rows

    @classmethod
    def of_dicts(cls, rows: list[dict[str, Any]]) -> Rows:
        columns = list(rows[0]) if rows else []
        return cls(columns, [tuple(r[c] for c in columns) for r in rows])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Rows(self.columns, self._rows[index])
        return dict(zip(self.columns, self._rows[index]))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (dict(zip(self.columns, r)) for r in self._rows)

    def to_dict(self) -> dict[str, list[Any]]:
        """Column -> values."""
        return {c: [r[i] for r in self._rows] for i, c in enumerate(self.columns)}

    def to_pandas(self) -> pandas.DataFrame:
        return _pandas().DataFrame(self._rows, columns=self.columns)

    def __repr__(self) -> str:
        return f"Rows({len(self)} rows: {', '.join(self.columns)})"

    def _repr_html_(self) -> str:
        return _table(f"{len(self):,} rows{'; the first 20' if len(self) > 20 else ''}", self.columns, [list(r) for r in self._rows[:20]])


class Store:
    """A store opened for reading."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        _native.select_points(self.path, "", 1)  # refuses what is no store, with its sentence

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)

    def pareto(self, x: str, y: str, where: str = "") -> Rows:
        """Points that no other point beats in both figures: ``store.pareto("size_factor", "tokens_per_s", "gpu=h100-sxm,context=32K")``.

        Points that do not fit memory take no part unless ``fits`` is named. Decode steps: prefill is excluded.
        """
        return Rows.of_dicts(_native.pareto(self.path, x, y, where))

    def points(self, where: str = "", limit: int = 1_000_000) -> Rows:
        """Stored points under conditions (``"method=kivi,context>=32K"``), by key."""
        return Rows.of_dicts(_native.select_points(self.path, where, limit))

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        """Your own SQL, read-only; the view ``points`` spells every name of a point out (tables: sweeps/README.md)."""
        with self._connect() as db:
            cursor = db.execute(sql, tuple(parameters))
            columns = [d[0] for d in cursor.description or ()]
            rows = cursor.fetchall()
        db.close()
        return Rows(columns, rows)

    @property
    def tables(self) -> dict[str, int]:
        """Rows of each table."""
        names = [r["name"] for r in self.query("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name")]
        return {n: self.query(f'SELECT count(*) AS n FROM "{n}"')[0]["n"] for n in names}

    def to_pandas(self, where: str = "", limit: int = 1_000_000) -> pandas.DataFrame:
        return self.points(where, limit).to_pandas()

    def to_parquet(self, path: str | os.PathLike[str], sql: str = "SELECT * FROM points", *, rows_per_group: int = 100_000) -> int:
        """Writes a query as a Parquet file in groups, so that memory does not grow with the store; returns its rows. Needs pyarrow."""
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise ImportError("to_parquet needs pyarrow: pip install pyarrow") from None
        written, writer, schema = 0, None, None
        db = self._connect()
        try:
            cursor = db.execute(sql)
            names = [d[0] for d in cursor.description]
            while rows := cursor.fetchmany(rows_per_group):
                table = pa.Table.from_pylist([dict(zip(names, (v.hex() if isinstance(v, bytes) else v for v in r))) for r in rows], schema=schema)
                if writer is None:
                    # A column that starts with NULLs could be anything: the store's figures are numbers.
                    schema = pa.schema([pa.field(f.name, pa.float64() if pa.types.is_null(f.type) else f.type) for f in table.schema])
                    table = table.cast(schema)
                    writer = pq.ParquetWriter(os.fspath(path), schema)
                writer.write_table(table)
                written += len(rows)
        finally:
            db.close()
            if writer is not None:
                writer.close()
        if writer is None:
            raise ValueError("the query has no rows, must have at least one to be written")
        return written

    def __repr__(self) -> str:
        return f"Store({self.path!r})"

    def _repr_html_(self) -> str:
        return _table(f"store {self.path}", ["table", "rows"], [[k, v] for k, v in self.tables.items()])


def open_store(path: str | os.PathLike[str]) -> Store:
    """A store for reading; OSError with one sentence when it is none."""
    return Store(path)


def diff(a: str | os.PathLike[str], b: str | os.PathLike[str], threshold: float = 0.0) -> dict[str, Any]:
    """Figures of two stores that differ by more than ``threshold`` (relative): {changed, changed_count, equal, only_a, only_b}."""
    return _native.diff(os.fspath(a), os.fspath(b), threshold)
