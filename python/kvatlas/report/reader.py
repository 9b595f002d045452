"""Reads a kvatlas store (SQLite) into plain Python lists: everything that the page and the figures draw."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from .errors import StoreError
from .pick import KINDS, kind_of

APPLICATION_ID = 0x6B766174  # in the header of every store
NEWEST_SCHEMA = 5

POINT_FIGURES = ("step_s", "low_s", "high_s", "attention_s", "matrix_s", "method_s", "other_s", "tokens_per_s", "speedup",
                 "throughput_gain", "size_factor", "cache_bytes", "peak_bytes", "cache_read_bytes", "energy_j")
WORKLOAD_FIGURES = ("requests_per_s", "low_requests_per_s", "high_requests_per_s", "tokens_per_s", "ttft_s", "tpot_s", "prefill_s",
                    "step_s", "concurrency", "speedup", "speedup_decode_only", "size_factor", "cache_bytes", "peak_bytes",
                    "energy_j_per_token", "usd_per_mtok")
MOST_MEASUREMENTS = 5000  # that the page carries
# What a configuration's canonical text has beside these is its scenario: weights, engine, parallelism, ...
_NOT_SCENARIO = ("model", "gpu", "method", "plan")


class Store:
    """A store opened for reading. Older versions lack tables, which then read as empty."""

    def __init__(self, path: "str | Path"):
        self.path = Path(path)
        if not self.path.is_file():
            raise StoreError(f"{path}: no such file")
        try:
            self.db = sqlite3.connect(self.path.resolve().as_uri() + "?mode=ro", uri=True)
            application = self.db.execute("PRAGMA application_id").fetchone()[0]
            self.version = self.db.execute("PRAGMA user_version").fetchone()[0]
            self.tables = {name for (name,) in self.db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        except sqlite3.Error as error:
            raise StoreError(f"{path}: cannot be read as a store ({error})") from None
        if application != APPLICATION_ID:
            raise StoreError(f"{path}: not a kvatlas store, an SQLite database of something else")
        if self.version > NEWEST_SCHEMA:
            raise StoreError(f"{path}: store version {self.version} is newer than this package's {NEWEST_SCHEMA}; upgrade the package")

    def close(self) -> None:
        self.db.close()

    def rows(self, sql: str, *values: Any) -> List[Tuple[Any, ...]]:
        return self.db.execute(sql, values).fetchall()

    def columns(self, table: str) -> List[str]:
        return [row[1] for row in self.db.execute(f"PRAGMA table_info({table})")]

    def records(self, table: str, order: str = "rowid", where: str = "1") -> List[Dict[str, Any]]:
        """Rows of a small table as dictionaries; empty when this version has no such table."""
        if table not in self.tables:
            return []
        names = [n for n in self.columns(table) if n not in ("id", "key")]
        return [dict(zip(names, row)) for row in self.rows(f"SELECT {', '.join(names)} FROM {table} WHERE {where} ORDER BY {order}")]


def _places(ids: Sequence[int]) -> Dict[int, int]:
    return {value: place for place, value in enumerate(ids)}


def _vocabulary(values: Sequence[Optional[str]]) -> Tuple[List[str], List[int]]:
    """Distinct texts, and the place of each value among them (255: NULL)."""
    names: Dict[str, int] = {}
    places = [255 if v is None else names.setdefault(v, len(names)) for v in values]
    return list(names), places


def _object(text: str) -> Dict[str, Any]:
    """A JSON object of the store."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise json.JSONDecodeError("an object was expected", text, 0)
    return value


def _shares(sizes: Sequence[int], most: int) -> List[int]:
    """How many of each group are kept, `most` in all: the same number of each, and what small groups leave goes to the larger ones."""
    kept = [0] * len(sizes)
    left = min(most, sum(sizes))
    for done, group in enumerate(sorted(range(len(sizes)), key=lambda g: (sizes[g], g))):
        kept[group] = min(sizes[group], left // (len(sizes) - done))
        left -= kept[group]
    return kept


def _measurements(store: Store, most: int) -> Tuple[List[Dict[str, Any]], int]:
    """At most `most` measurements, as many of every kind and GPU and evenly along each, and how many the store holds."""
    if "measurements" not in store.tables:
        return [], 0
    groups: Dict[Tuple[str, str], List[int]] = {}
    for row, kind, gpu in store.rows("SELECT rowid, kind, gpu FROM measurements ORDER BY kind, gpu, rowid"):
        groups.setdefault((kind, gpu), []).append(row)
    total = sum(len(rows) for rows in groups.values())
    if total <= most:
        return store.records("measurements"), total
    chosen = []
    for rows, count in zip(groups.values(), _shares([len(rows) for rows in groups.values()], most)):
        chosen += [rows[k * len(rows) // count] for k in range(count)]
    store.db.execute("CREATE TEMP TABLE drawn(id INTEGER PRIMARY KEY)")
    store.db.executemany("INSERT INTO drawn VALUES(?)", ((row,) for row in chosen))
    return store.records("measurements", where="rowid IN (SELECT id FROM drawn)"), total


# Batches that are drawn of a store that is too large, from many to few: small batches are what charts and comparisons start from, so they go last.
PICKS = (("batch & (batch - 1) = 0", "batches that are powers of two, the largest and the fastest"),
         (f"batch IN (1, 2, 4, {', '.join(str(8 * 4 ** i) for i in range(10))})", "batches of 1, 2, 4, 8, 32, 128 and so on, the largest and the fastest"),
         ("batch = 1", "batch 1, the largest and the fastest batch"),
         (None, "the largest and the fastest batch"))


def _thin(store: Store, most: int) -> Tuple[str, Optional[str]]:
    """A condition that keeps at most about `most` rows of predictions, and the sentence that says what was kept."""
    total = store.rows("SELECT count(*) FROM predictions")[0][0]
    if total <= most:
        return "1", None
    contexts = [c for (c,) in store.rows("SELECT DISTINCT context FROM predictions ORDER BY 1")]
    doubling = [c for c in contexts if c & (c - 1) == 0] or contexts[:: max(1, len(contexts) // 6)]
    chosen, said = contexts, "every context"
    if len(contexts) > len(doubling):
        chosen, said = doubling, f"{len(doubling)} of {len(contexts)} contexts"
    store.db.execute("CREATE TEMP TABLE kept(id INTEGER PRIMARY KEY)")
    while True:
        marks = ", ".join(str(int(c)) for c in chosen)
        for pick, picked in PICKS:
            store.db.execute("DELETE FROM kept")
            # The largest batch and the fastest one of each configuration and context always stay.
            for best in ("max(batch)", "max(tokens_per_s)"):
                store.db.execute(f"INSERT OR IGNORE INTO kept SELECT id FROM (SELECT id, {best} FROM predictions WHERE context IN ({marks}) GROUP BY configuration, context)")
            if pick:
                store.db.execute(f"INSERT OR IGNORE INTO kept SELECT id FROM predictions WHERE context IN ({marks}) AND {pick}")
            kept = store.rows("SELECT count(*) FROM kept")[0][0]
            if kept <= most * 1.1 or (pick is None and len(chosen) <= 2):
                return "p.id IN (SELECT id FROM kept)", f"{kept:,} of {total:,} decode steps are drawn: {said}; of each, {picked}. The store holds them all."
        chosen = chosen[::2] if len(chosen) > 2 else chosen[:1]
        said = f"{len(chosen)} of {len(contexts)} contexts"


def read(path: "str | Path", points: int = 100_000) -> Dict[str, Any]:
    """Everything that is drawn, as a dictionary of lists.

    path     a store
    points   most rows of `predictions` that are read; beyond, contexts and batches are thinned, which `meta.thinned` tells
    returns  {meta, models, gpus, methods, scenarios, configurations, points, workloads, served, infeasible, quality,
              caches, ledgers, validation, measurements, claims}; figures in the units of the store's columns
    raises   StoreError with one sentence
    """
    store = Store(path)
    try:
        return _read(store, points)
    except sqlite3.Error as error:
        raise StoreError(f"{path}: cannot be read as a store ({error})") from None
    except json.JSONDecodeError as error:
        raise StoreError(f"{path}: a text that should be JSON is not ({error})") from None
    except KeyError as error:
        raise StoreError(f"{path}: a row names the id {error}, which its table does not hold; the store is damaged") from None
    finally:
        store.close()


def _read(store: Store, most: int) -> Dict[str, Any]:
    models = store.rows("SELECT id, identity, slug, name, source FROM models ORDER BY id")
    gpus = store.rows("SELECT id, identity, slug, name FROM gpus ORDER BY id")
    methods = store.rows("SELECT id, recipe, slug, family, params, deployable FROM methods ORDER BY id")
    workloads = store.rows("SELECT id, hex(key), prompt, output, prefix_hit, turns, rate, concurrency, slo_ttft_s, slo_tpot_s FROM workloads ORDER BY id")
    model_at, gpu_at, method_at, workload_at = (_places([r[0] for r in rows]) for rows in (models, gpus, methods, workloads))

    scenarios: Dict[str, int] = {}
    plans: Dict[str, int] = {}
    configurations: Dict[str, List[int]] = {"model": [], "gpu": [], "method": [], "scenario": [], "plan": []}
    configuration_ids = []
    for ident, model, gpu, method, plan, canonical in store.rows("SELECT id, model, gpu, method, plan, canonical FROM configurations ORDER BY id"):
        rest = {k: v for k, v in _object(canonical).items() if k not in _NOT_SCENARIO}
        scenario = scenarios.setdefault(json.dumps(rest, sort_keys=True), len(scenarios))
        configuration_ids.append(ident)
        for name, value in (("model", model_at[model]), ("gpu", gpu_at[gpu]), ("method", method_at[method]), ("scenario", scenario),
                            ("plan", plans.setdefault(plan, len(plans)))):
            configurations[name].append(value)
    if not configuration_ids:
        raise StoreError(f"{store.path}: holds no configuration yet; kvatlas sweep SPEC --db FILE puts some there")
    configuration_at = _places(configuration_ids)

    total = store.rows("SELECT count(*) FROM predictions")[0][0]
    condition, thinned = _thin(store, most)
    figures = ", ".join("p." + c for c in POINT_FIGURES)
    rows = store.rows(f"SELECT p.configuration, p.context, p.batch, p.bound, p.evidence, p.fits, {figures} FROM predictions p "
                      f"WHERE {condition} ORDER BY p.configuration, p.context, p.batch")
    columns: List[Tuple[Any, ...]] = list(zip(*rows)) if rows else [()] * (6 + len(POINT_FIGURES))
    bounds, bound = _vocabulary(columns[3])
    evidences, evidence = _vocabulary(columns[4])
    drawn: Dict[str, Any] = {"configuration": [configuration_at[c] for c in columns[0]], "context": columns[1], "batch": columns[2],
                             "bound": bound, "evidence": evidence, "fits": columns[5]}
    drawn.update(zip(POINT_FIGURES, columns[6:]))

    served_rows = store.rows(f"SELECT configuration, workload, bound, evidence, feasible, why_not, {', '.join(WORKLOAD_FIGURES)} "
                             "FROM workload_predictions ORDER BY workload, configuration")
    columns = list(zip(*served_rows)) if served_rows else [()] * (6 + len(WORKLOAD_FIGURES))
    all_bounds, all_evidences = list(bounds), list(evidences)

    def place(names: List[str], value: Optional[str]) -> int:
        if value is None:
            return 255
        if value not in names:
            names.append(value)
        return names.index(value)

    sentences: Dict[str, int] = {"": 0}
    served: Dict[str, Any] = {
        "configuration": [configuration_at[c] for c in columns[0]], "workload": [workload_at[w] for w in columns[1]],
        "bound": [place(all_bounds, b) for b in columns[2]], "evidence": [place(all_evidences, e) for e in columns[3]], "feasible": columns[4],
        "why_not": [sentences.setdefault(s, len(sentences)) for s in columns[5]]}
    served.update(zip(WORKLOAD_FIGURES, columns[6:]))

    refused = store.rows("SELECT configuration, context, sentence FROM infeasible ORDER BY configuration, context")
    infeasible = {"configuration": [configuration_at[r[0]] for r in refused], "context": [r[1] for r in refused],
                  "sentence": [sentences.setdefault(r[2], len(sentences)) for r in refused]}

    caches: Dict[str, List[Any]] = {k: [] for k in ("model", "method", "context", "bits_per_value", "forgets")}
    ledgers: Dict[str, List[Any]] = {k: [] for k in ("model", "method", "context", "component", "side", "bytes", "bits_per_value")}
    components: List[str] = []
    if "caches" in store.tables:
        for model, method, context, bits, forgets in store.rows("SELECT model, method, context, bits_per_value, forgets FROM caches"):
            for name, value in zip(caches, (model_at[model], method_at[method], context, bits, forgets)):
                caches[name].append(value)
        for model, method, context, component, side, count, bits in store.rows(
                "SELECT model, method, context, component, side, bytes, bits_per_value FROM ledgers"):
            for name, value in zip(ledgers, (model_at[model], method_at[method], context, place(components, component), side, count, bits)):
                ledgers[name].append(value)

    measured, measured_total = _measurements(store, MOST_MEASUREMENTS)
    runs = store.rows("SELECT code_version, shard, state, points, infeasible, spec FROM runs ORDER BY id")
    return {
        "meta": {"db": store.path.name, "schema": store.version, "code_version": (store.rows("SELECT value FROM meta WHERE name = 'code_version'") or [("unknown",)])[0][0],
                 "points_total": total, "points_drawn": len(rows), "workload_rows": len(served_rows), "thinned": thinned, "measurements_total": measured_total,
                 "runs": [{"code_version": r[0], "shard": r[1], "state": r[2], "points": r[3], "infeasible": r[4], "spec": _object(r[5])} for r in runs]},
        "models": [dict(zip(("identity", "slug", "name", "source"), r[1:])) for r in models],
        "gpus": [dict(zip(("identity", "slug", "name"), r[1:])) for r in gpus],
        "methods": [dict(zip(("recipe", "slug", "family", "params", "deployable"), (*r[1:4], _object(r[4]), r[5]))) for r in methods],
        "scenarios": [json.loads(s) for s in scenarios], "plans": list(plans),
        "kinds": list(KINDS), "kind_of_component": [kind_of(c) for c in components],
        "bounds": all_bounds, "evidences": all_evidences, "sentences": list(sentences), "components": components,
        "configurations": configurations, "points": drawn,
        "workloads": [dict(zip(("key", "prompt", "output", "prefix_hit", "turns", "rate", "concurrency", "slo_ttft_s", "slo_tpot_s"), r[1:])) for r in workloads],
        "served": served, "infeasible": infeasible, "caches": caches, "ledgers": ledgers,
        "quality": store.records("quality"), "validation": store.records("validation", "kind, gpu, profile, kv_dtype, subset"),
        "measurements": measured, "claims": store.records("claims"),
    }
