"""A small store with known figures, made from the schema that the C++ code ships, for the tests of the report."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from pathlib import Path
from typing import Dict, List, Optional, Tuple

ROOT = Path(__file__).resolve().parents[3]
GIB = 2.0 ** 30

# recipe, slug, family, offered by an engine, size factor, speed of a step at 32K, forgets tokens, evidence
METHODS: List[Tuple[str, str, str, int, float, float, int, str]] = [
    ("full", "full", "baseline", 1, 1.0, 1.0, 0, "fitted"),
    ("fp8_kv", "fp8_kv", "quantization", 1, 2.0, 1.5, 0, "fitted"),
    ("turboquant", "turboquant", "quantization", 1, 5.0, 2.4, 0, "uncalibrated_format"),
    ("kivi", "kivi", "quantization", 0, 6.5, 2.6, 0, "uncalibrated_format"),
    ("kivi:bits=4", "kivi", "quantization", 0, 3.6, 2.1, 0, "uncalibrated_format"),
    ("streaming_llm", "streaming_llm", "eviction", 1, 16.0, 3.2, 1, "extrapolated"),
    ("snapkv", "snapkv", "eviction", 0, 14.0, 3.1, 1, "extrapolated"),
    ("pyramidkv", "pyramidkv", "eviction", 0, 25.0, 3.4, 1, "extrapolated"),
    ("quest", "quest", "retrieval", 1, 0.95, 1.9, 0, "extrapolated"),
    ("slow_one", "slow_one", "coding", 1, 3.0, 0.5, 0, "fitted"),
]
CONTEXTS = (4096, 8192, 16384, 32768, 65536)
BATCHES = (1, 2, 4, 8, 16)
REFUSED = "kivi: group_size is 48, must divide head_dim (128)"


def schema() -> List[str]:
    """The migrations of sweeps/schema.cpp, in order."""
    text = (ROOT / "sweeps" / "schema.cpp").read_text(encoding="utf-8")
    return [sql for _, sql in sorted(re.findall(r'kVersion(\d+) = R"\((.*?)\)";', text, re.S), key=lambda found: int(found[0]))]


def make_store(path: Path, *, evidence: bool = True, workloads: bool = True, version: Optional[int] = None, copies: int = 1, quality_model: str = "small-8b") -> Path:
    """Writes the store.

    evidence       also quality, claims, ledgers, validation and measurements
    version        an older schema: tables that it lacks are left out
    copies         each batch so many times, under other batch sizes: large stores
    quality_model  the model on which quality was judged
    """
    db = sqlite3.connect(path)
    steps = schema()[:version]
    for sql in steps:
        db.executescript(sql)
    db.execute("PRAGMA application_id = 0x6b766174")
    db.execute(f"PRAGMA user_version = {len(steps)}")
    db.execute("INSERT INTO meta VALUES('code_version', '0.0-test')")
    models, gpus = ("small-8b", "wide-7b"), ("rtx-9000", "h200:hbm_bandwidth=9000000000000B/s")
    for i, slug in enumerate(models):
        db.execute("INSERT INTO models VALUES(?, ?, ?, ?, 'a test', '{}')", (i + 1, slug, slug, slug.replace("-", " ").title()))
    for i, identity in enumerate(gpus):
        db.execute("INSERT INTO gpus VALUES(?, ?, ?, ?)", (i + 1, identity, identity.split(":")[0], identity.split(":")[0].upper()))
    for i, (recipe, slug, family, offered, *_rest) in enumerate(METHODS):
        params = dict(p.split("=") for p in recipe.split(":")[1].split(",")) if ":" in recipe else {}
        db.execute("INSERT INTO methods VALUES(?, ?, ?, ?, ?, ?)", (i + 1, recipe, slug, family, json.dumps(params), offered))
    if workloads:
        db.execute("INSERT INTO workloads VALUES(1, x'aabbccdd00112233aabbccdd00112233', 32768, 512, 0.0, 1, NULL, NULL, NULL, 0.05, '{}')")
    configuration = 0
    for m in range(len(models)):
        for g in range(len(gpus)):
            for t, (recipe, _slug, _family, _offered, size, speed, _forgets, kind) in enumerate(METHODS):
                configuration += 1
                canonical = {"chunk": 8192, "dp": 1, "engine": "vllm", "ep": 1, "gpu": gpus[g], "gpu_memory_utilization": 0.9, "method": recipe, "model": models[m], "plan": "ideal", "pp": 1, "tp": 1, "weights": "bf16"}
                db.execute("INSERT INTO configurations VALUES(?, ?, ?, ?, ?, 'bf16', 'vllm', 1, 'ideal', 'computed', ?)",
                           (configuration, configuration.to_bytes(16, "big"), m + 1, g + 1, t + 1, json.dumps(canonical)))
                if recipe == "kivi" and m == 1:
                    db.execute("INSERT INTO infeasible VALUES(?, 0, ?)", (configuration, REFUSED))
                    continue
                wide = 0.1 if kind == "fitted" else 0.3 if kind == "extrapolated" else 0.8
                rows = []
                for c in CONTEXTS:
                    here = max(0.2, 1 + (speed - 1) * c / 32768)
                    for b0 in BATCHES:
                        for copy in range(copies):
                            b = b0 if copy == 0 else 16 + b0 * 100000 + copy
                            cache = b * c * 131072 / size
                            attention, matrix = (g + 1) ** -1 * 2e-7 * c * min(b, 64) / max(here, 0.05), 0.012 / (g + 1)
                            step = attention + matrix + 4e-4
                            rows.append((configuration, c, b, step, step * (1 - wide), step * (1 + wide), attention, matrix, 1e-4, 3e-4, b / step, here, here * 0.9, size, cache, 16 * GIB + cache, cache, 5.0,
                                         "memory", kind, 1))
                db.executemany("INSERT INTO predictions VALUES(NULL, zeroblob(16), ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
                if workloads:
                    rate = 0.06 * speed * (g + 1)
                    fits = recipe != "snapkv" or g == 1
                    figures = (rate, rate * (1 - wide), rate * (1 + wide), 33 * speed, 9.1, 0.048 / speed, 4.7, 0.02, int(2 * size) or 1, speed, speed * 1.5, size, 4 * GIB / size, 20 * GIB, 12.0, 3.4, "memory_capacity", kind)
                    if not fits:
                        figures = (None,) * len(figures)
                    db.execute("INSERT INTO workload_predictions VALUES(?, ?, ?, 1, " + "?, " * 18 + "?, ?)",
                               (configuration, configuration.to_bytes(16, "little"), configuration, *figures, int(fits), "" if fits else "a prompt holds 11.88 GiB more before it is compressed"))
    db.execute("INSERT INTO runs VALUES(1, '0.0-test', 'aa', '1/1', 'complete', ?, 1, ?)",
               (db.execute("SELECT count(*) FROM predictions").fetchone()[0], json.dumps({"name": "test", "comment": "figures that are easy to check", "batches": {"to_memory_limit": True}})))
    if evidence:
        add_evidence(db, len(steps), quality_model)
    db.commit()
    db.close()
    return path


def add_evidence(db: sqlite3.Connection, version: int, quality_model: str) -> None:
    for recipe, retained, grade in (("kivi", 0.991, "M"), ("kivi:bits=4", 0.999, "M"), ("snapkv", 0.95, "X"), ("streaming_llm", 0.7, "M"), ("pyramidkv", 0.93, "X"), ("fp8_kv", 0.9995, "P")):
        db.execute("INSERT INTO quality(model, recipe, quality_model, metric, value, retained, context, protocol, n, ci95_low, ci95_high, grade, source, provenance) "
                   "VALUES('small-8b', ?, ?, 'top1_agreement', ?, ?, 4096, 'a', 512, ?, ?, ?, 'a test', 'measured')",
                   (recipe, quality_model, figure := retained if recipe == "kivi" else 0.8 * retained, retained, figure - 0.01, figure + 0.005, grade))  # the interval is the figure's, which is not what is retained
    columns = {row[1] for row in db.execute("PRAGMA table_info(claims)")}
    for method, published, ours, verdict in (("kivi", 2.6, 2.7, "reproduced"), ("snapkv", 3.6, 1.9, "not_reproduced"), ("quest", 7.0, None, "undetermined")):
        db.execute("INSERT INTO claims(method, metric, published, ours, setup, verdict, why, source, provenance) VALUES(?, 'speedup', ?, ?, 'context 32768 <batch 1>', ?, 'a test', 'arXiv 0000.00000', 'computed')",
                   (method, published, ours, verdict))
    if "unit" in columns:
        db.execute("UPDATE claims SET unit = 'x'")
    if version < 3:
        return
    for t, (recipe, _slug, family, _offered, size, _speed, forgets, _kind) in enumerate(METHODS):
        for context in CONTEXTS:
            bits = 16 / size
            db.execute("INSERT INTO caches VALUES(1, ?, ?, ?, ?, ?, ?)", (t + 1, context, int(context * 131072 / size), context * 131072, bits, forgets))
            parts: Dict[str, float] = {"rows": bits} if family in ("baseline", "eviction") else {"codes": 0.7 * bits, "scales": 0.2 * bits, "residual": 0.1 * bits}
            for component, amount in parts.items():
                db.execute("INSERT INTO ledgers VALUES(1, ?, ?, ?, 'both', 'token', ?, ?)", (t + 1, context, component, int(context * 8192 * amount), amount))
    for subset in ("all", "cold"):
        db.execute("INSERT INTO validation VALUES('decode_attention', '*', '*', '*', ?, 40, 0.03, 0.05, 0.1, 0.001, 0.8, 0.2, 0.3, 0.2)", (subset,))
    for kind, gpu, profile, coverage in (("e2e_ttft", "*", "*", 0.23), ("e2e_tpot", "*", "*", 0.82), ("e2e_tpot", "H200", "vllm-0.9:Small-8B", 0.85)):
        db.execute("INSERT INTO validation VALUES(?, ?, ?, 'bf16', 'all', 12, 0.1, 0.2, 0.3, -0.1, ?, 0.2, 0.7, 0.6)", (kind, gpu, profile, coverage))
    for i in range(40):
        seconds = 1e-5 * 1.3 ** i
        db.execute("INSERT INTO measurements(kind, gpu, profile, setup, value, unit, source, provenance, subset, predicted, low, high) VALUES(?, 'H200', 'vllm:flash', ?, ?, 's', 'a test', 'measured', 'cold', ?, ?, ?)",
                   (("decode_attention", "gemm")[i % 2], f"shape {i}", seconds, seconds * (1.03 if i % 3 else 0.96), seconds * 0.9, seconds * 1.1))


POISON = """<img src=x onerror="window.pwned=1">'"</script>@DATA@@PLOTLY@&~%"""


def poison(path: Path) -> Path:
    """Puts markup, quotes, the end of a script and the page's own place names into every text that the store lets be free."""
    db = sqlite3.connect(path)
    keep = {("configurations", "canonical"), ("methods", "params"), ("runs", "spec"), ("models", "config"), ("workloads", "canonical"), ("ledgers", "side"), ("methods", "recipe")}
    for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'").fetchall():
        for _, name, kind, *_rest in db.execute(f"PRAGMA table_info({table})").fetchall():
            if kind != "TEXT" or (table, name) in keep or (table == "meta" and name == "key"):
                continue
            with contextlib.suppress(sqlite3.IntegrityError):  # a column of few allowed words holds no markup
                some = f"{name} NOT IN ('*', 'all', 'cold', 'decode_attention')" if table in ("validation", "measurements") else "1"  # what the page looks rows up by
                db.execute(f"UPDATE {table} SET {name} = {name} || ? WHERE {some}", (POISON,))
    for table, name in (("configurations", "canonical"), ("methods", "params"), ("runs", "spec")):
        for ident, text in db.execute(f"SELECT id, {name} FROM {table}").fetchall():
            value = json.loads(text)
            value[POISON] = POISON
            if table == "runs":
                value["name"] = value["comment"] = POISON
            db.execute(f"UPDATE {table} SET {name} = ? WHERE id = ?", (json.dumps(value), ident))
    db.execute("UPDATE methods SET recipe = recipe || ? WHERE recipe <> 'full'", (POISON,))
    db.commit()
    db.close()
    return path
