"""Sweeps and stores: one process, executors, a cluster with a killed worker, fronts, SQL, Parquet, imported evidence."""
import concurrent.futures
import json
import os
import signal
import sqlite3
import threading
import time

import kvatlas
import pytest


def rows(path):
    """Everything that a sweep stores, in an order that does not depend on how it ran."""
    with sqlite3.connect(path) as db:
        points = db.execute("SELECT * FROM points ORDER BY key").fetchall()
        infeasible = db.execute("SELECT c.canonical, i.context, i.sentence FROM infeasible i JOIN configurations c ON c.id = i.configuration ORDER BY 1, 2").fetchall()
    db.close()
    return points, infeasible


def test_a_sweep_says_what_it_did_and_goes_on(spec, tmp_path):
    path = tmp_path / "a.sqlite"
    seen = []
    first = kvatlas.sweep(spec, path, progress=seen.append)
    assert first["stored"] == first["points"] > 50 and not first["interrupted"] and seen[-1]["configurations_done"] == seen[-1]["configurations"]
    again = kvatlas.sweep(json.dumps(spec), path)
    assert again["stored"] == 0 and again["skipped"] == first["points"]
    with pytest.raises(ValueError, match="contexts"):
        kvatlas.sweep({**spec, "contexts": "0"}, tmp_path / "b.sqlite")


def test_plan_names_chunks_by_content(spec):
    a, b = kvatlas.plan(spec, 4), kvatlas.plan(spec, 4)
    assert a == b and len({p["key"] for p in a}) == 4 and a[1]["shard"] == "2/4"
    assert kvatlas.plan({**spec, "contexts": "8K"}, 4)[0]["key"] != a[0]["key"]


@pytest.mark.parametrize("executor", [concurrent.futures.ThreadPoolExecutor, concurrent.futures.ProcessPoolExecutor])
@pytest.mark.parametrize("shared", [True, False])
def test_any_executor_gives_the_rows_of_one_process(executor, shared, spec, store, tmp_path):
    path = tmp_path / "many.sqlite"
    options = {"mp_context": __import__("multiprocessing").get_context("spawn")} if executor is concurrent.futures.ProcessPoolExecutor else {}
    with executor(2, **options) as pool:
        report = kvatlas.sweep(spec, path, executor=pool, chunks=5, shared_folder=shared)
    assert rows(path) == rows(store) and report["rows"] == len(rows(store)[0]) and report["conflicts"] == 0
    assert not os.path.exists(str(path) + ".chunks")
    with executor(2, **options) as pool:  # merging is idempotent
        kvatlas.sweep(spec, path, executor=pool, chunks=3, shared_folder=shared)
    assert rows(path) == rows(store)


class Flaky:
    """Workers that die: the first try of every chunk fails, some after their file was written."""

    def __init__(self):
        self.tries = {}

    def submit(self, fn, *args):
        future = concurrent.futures.Future()
        shard = args[3]
        self.tries[shard] = self.tries.get(shard, 0) + 1
        if self.tries[shard] == 1 and shard.startswith("1/"):
            fn(*args)
        if self.tries[shard] == 1:
            future.set_exception(RuntimeError("worker lost"))
        else:
            future.set_result(fn(*args))
        return future


def test_a_lost_worker_costs_its_chunk_alone(spec, store, tmp_path):
    path = tmp_path / "flaky.sqlite"
    report = kvatlas.sweep(spec, path, executor=Flaky(), chunks=4)
    assert report["retried"] == report["chunks"] and rows(path) == rows(store)

    class Broken:
        def submit(self, fn, *args):
            future = concurrent.futures.Future()
            if args[3] == "1/4":
                future.set_result(fn(*args))
            else:
                future.set_exception(RuntimeError("no machine"))
            return future

    other = tmp_path / "broken.sqlite"
    with pytest.raises(RuntimeError, match="the same call goes on"):
        kvatlas.sweep(spec, other, executor=Broken(), chunks=4)
    assert len([f for f in os.listdir(str(other) + ".chunks") if f.endswith(".sqlite")]) == 1 and not other.exists()
    report = kvatlas.sweep(spec, other, executor=Flaky(), chunks=4)
    assert report["reused"] == 1 and rows(other) == rows(store)


def test_figures_of_two_texts_survive_sweeps_through_an_executor(spec, tmp_path):
    path = tmp_path / "a.sqlite"
    kvatlas.sweep({**spec, "contexts": "4K"}, path)
    row = "INSERT INTO quality(model, recipe, quality_model, metric, value, context, protocol, grade, source, provenance, text_hash) VALUES('m', 'kivi', 'w', 'perplexity', ?, 1024, 'p', 'M', 's', 'measured', ?)"
    with sqlite3.connect(path) as db:
        db.executemany(row, [(6.5, "one"), (7.5, "two")])
    db.close()
    for _ in range(2):
        report = kvatlas.sweep(spec, path, executor=Flaky(), chunks=2)
        assert report["conflicts"] == 0
    assert [tuple(r.values()) for r in kvatlas.open_store(path).query("SELECT text_hash, value FROM quality ORDER BY 1")] == [("one", 6.5), ("two", 7.5)]


@pytest.mark.parametrize("keep", [False, True])
def test_what_dead_workers_left_of_merged_chunks_is_removed(keep, spec, tmp_path):
    path, chunks = tmp_path / "a.sqlite", tmp_path / "chunks"
    chunks.mkdir()
    key = kvatlas.plan(spec, 2)[0]["key"]
    left = [f"{key}.0123.part", f"{key}.0123.part-wal", f"{key}.sqlite.4567.part"]
    for name in (*left, "another.0123.part"):
        (chunks / name).write_bytes(b"half")
    kvatlas.sweep(spec, path, executor=Flaky(), chunks=2, chunk_folder=chunks, keep_chunks=keep)
    kept = sorted(p.name for p in chunks.iterdir())
    assert [n for n in kept if not n.endswith(".sqlite")] == ["another.0123.part"] and len(kept) == (3 if keep else 1)


@pytest.mark.parametrize("name", ["50%41.sqlite", "a#b.sqlite", "a?mode=rwc.sqlite", "a b.sqlite"])
def test_a_store_may_have_any_name(name, store, tmp_path):
    os.makedirs(tmp_path / "odd")
    path = tmp_path / "odd" / name
    os.rename(store, path)
    s = kvatlas.open_store(path)
    assert s.query("SELECT count(*) AS n FROM points")[0]["n"] == len(s.points())
    assert os.listdir(tmp_path / "odd") == [name]


def test_a_query_that_fails_closes_its_connection(store, monkeypatch):
    s = kvatlas.open_store(store)
    opened = []
    connect = s._connect
    monkeypatch.setattr(s, "_connect", lambda: opened.append(connect()) or opened[-1])
    with pytest.raises(sqlite3.OperationalError):
        s.query("SELECT nothing FROM nowhere")
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[0].execute("SELECT 1")


def test_dask_survives_a_killed_worker(tmp_path):
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
    big = {"models": ["llama-3.1-8b", "qwen2.5-7b"], "gpus": ["h100-sxm", "rtx-4090"], "methods": "all", "contexts": "4K..128K+4K", "batches": {"to_memory_limit": True, "per_doubling": 8}}
    alone, path = tmp_path / "alone.sqlite", tmp_path / "cluster.sqlite"
    kvatlas.sweep(big, alone)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1") as cluster, distributed.Client(cluster) as client:
        victim = next(iter(cluster.workers.values())).pid if hasattr(next(iter(cluster.workers.values())), "pid") else None
        victim = victim or client.run(os.getpid).popitem()[1]
        killed = []

        def kill_once(progress):
            if not killed and progress["chunks_done"] >= 2:
                os.kill(victim, signal.SIGKILL)
                killed.append(progress["chunks_done"])

        report = kvatlas.sweep(big, path, executor=client, chunks=24, progress=kill_once)
    assert killed and killed[0] < 24 and report["chunks"] == 24
    assert rows(path) == rows(alone)


def test_ctrl_c_leaves_a_store_that_goes_on(spec, tmp_path):
    path = tmp_path / "stopped.sqlite"
    big = {**spec, "models": ["llama-3.1-8b", "qwen2.5-7b"], "methods": "all", "contexts": "4K..128K+2K", "batches": {"to_memory_limit": True, "per_doubling": 16}}

    def interrupt(state):
        if state["stored"] > 0 and state["configurations_done"] < state["configurations"] and not interrupt.done:
            interrupt.done = True
            os.kill(os.getpid(), signal.SIGINT)

    interrupt.done = False
    try:
        kvatlas.sweep(big, path, jobs=1, progress=interrupt)
    except KeyboardInterrupt:
        time.sleep(0.01)
    if not interrupt.done:
        pytest.skip("the sweep ended before it reported progress")
    rest = kvatlas.sweep(big, path)
    assert not rest["interrupted"] and rest["skipped"] + rest["stored"] == rest["points"]


def test_fronts_conditions_and_sql(store):
    s = kvatlas.open_store(store)
    front = s.pareto("size_factor", "tokens_per_s", "gpu=h100-sxm,context=8K")
    assert len(front) > 0 and all(p["on_front"] for p in front)
    for a in front:
        assert not any(b["size_factor"] > a["size_factor"] and b["tokens_per_s"] > a["tokens_per_s"] for b in front)
    assert {p["method"] for p in s.points("method=kivi")} == {"kivi"}
    counted = s.query("SELECT gpu, count(*) AS n FROM points GROUP BY gpu ORDER BY gpu")
    assert [r["gpu"] for r in counted] == ["h100-sxm", "rtx-4090"] and counted[0]["n"] > 0 and counted.to_dict()["n"][0] == counted[0]["n"]
    assert s.query("SELECT count(*) AS n FROM points WHERE context = ?", [8192])[0]["n"] > 0
    assert s.tables["predictions"] == len(s.points()) and "<table" in s._repr_html_() and "<table" in front._repr_html_()
    with pytest.raises(sqlite3.OperationalError):
        s.query("DELETE FROM predictions")
    with pytest.raises(ValueError, match="did you mean"):
        s.pareto("size_facter", "tokens_per_s")
    assert kvatlas.diff(store, store)["changed_count"] == 0


def test_ctrl_c_ends_a_query(store):
    s = kvatlas.open_store(store)
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        s.query("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n")
    timer.join()
    assert len(s.query("SELECT 1 AS one")) == 1


def test_parquet(store, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    n = kvatlas.open_store(store).to_parquet(tmp_path / "a.parquet", rows_per_group=40)
    table = parquet.read_table(tmp_path / "a.parquet")
    assert table.num_rows == n == len(kvatlas.open_store(store).points()) and "step_ms" in table.column_names


def test_parquet_has_the_store_s_types_and_no_half_files(store, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    s = kvatlas.open_store(store)
    # The first group alone would tell another type of each computed column.
    late = "SELECT id, step_s, key, CASE WHEN id < 50 THEN NULL ELSE 'text' END AS late_text, CASE WHEN id < 50 THEN id ELSE 0.5 END AS late_real, NULL AS no_value FROM predictions ORDER BY id;"
    n = s.to_parquet(tmp_path / "b.parquet", late, rows_per_group=10)
    table = parquet.read_table(tmp_path / "b.parquet")
    assert table.num_rows == n and [str(f.type) for f in table.schema] == ["int64", "double", "string", "string", "double", "double"]
    assert table.column("late_text")[0].as_py() is None and table.column("late_text")[n - 1].as_py() == "text" and table.column("late_real")[1].as_py() == 2.0
    before = (tmp_path / "b.parquet").read_bytes()
    with pytest.raises(ValueError, match="no rows"):
        s.to_parquet(tmp_path / "b.parquet", "SELECT * FROM points WHERE context < 0")
    with pytest.raises(sqlite3.OperationalError):
        s.to_parquet(tmp_path / "b.parquet", "SELECT nothing FROM points")
    with pytest.raises(Exception):  # declared an integer by its first part, a text in its second
        s.to_parquet(tmp_path / "b.parquet", "SELECT context FROM predictions UNION ALL SELECT bound FROM predictions", rows_per_group=10)
    assert (tmp_path / "b.parquet").read_bytes() == before and sorted(os.listdir(tmp_path)) == ["atlas.sqlite", "b.parquet"]


def test_results_of_other_tools_become_rows(tmp_path):
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps([{"model_filename": "models/Llama-3.1-8B-Instruct-Q4_K_M.gguf", "model_type": "llama 8B Q4_K - Medium", "gpu_info": "NVIDIA GeForce RTX 4090",
                                  "type_k": k, "type_v": v, "n_prompt": 0, "n_gen": 128, "n_depth": d, "avg_ts": 120.5, "stddev_ts": 0.4}
                                 for k, v, d in (("f16", "f16", 0), ("q8_0", "q4_0", 4096), ("q9_9", "q8_0", 0))]))
    path = tmp_path / "atlas.sqlite"
    r = kvatlas.import_results("llama-bench", bench, db=path)
    assert r.rows == 3 and [row["recipe"] for row in r.imported] == ["full", "llamacpp_kv:v_type=q4_0", None]
    assert {(row["model"], row["gpu"], row["provenance"]) for row in r.imported} == {("llama-3.1-8b", "rtx-4090", "imported")}
    assert [u["field"] for u in r.unmatched] == ["method"] and "q9_9" in r.unmatched[0]["why"]
    kvatlas.import_results("llama-bench", bench, db=path)
    stored = kvatlas.open_store(path).query("SELECT * FROM imported")
    assert len(stored) == 3 and stored[0]["metric"] == "tokens_per_s" and json.loads(stored[1]["setup"])["n_depth"] == 4096
    with pytest.raises(ValueError, match="did you mean"):
        kvatlas.import_results("llama-bnch", bench)
    with pytest.raises(OSError):
        kvatlas.import_results("vllm-bench", bench)
