"""What-if questions: one in full, many as columns, and that both say the same."""
import json
import math
import os
import signal
import threading
import time

import kvatlas
import numpy as np
import pytest


def test_one_step_has_the_keys_of_the_contract():
    s = kvatlas.simulate("llama-3.1-8b", "h100-sxm", "kivi:bits=2", context="32K", batch=8)
    for key in ("tokens_per_s", "step_ms", "speedup_decode_only", "size_factor", "memory", "breakdown", "bound_by", "interval", "energy_j_per_token"):
        assert key in s
    assert s.mode.startswith("decode only") and s.requests_per_s is None and s.provenance == "computed"
    assert s.interval["low_ms"] <= s.step_ms <= s.interval["high_ms"]
    assert abs(sum(p["ms"] for p in s.breakdown) - s.step_ms) / s.step_ms < 0.05
    assert "attention" in s.explain() and "kivi" in repr(s) and "<table" in s._repr_html_()
    assert s.to_dict()["step_ms"] == s["step_ms"] == s.step_ms


def test_a_workload_counts_its_prompts():
    s = kvatlas.simulate("llama-3.1-8b", "rtx-4090", "fp8_kv", prompt="32K", output=512, slo={"tpot_ms": 50})
    assert s.mode == "workload" and s.requests_per_s > 0 and s.tpot_ms <= 50 and s.speedup < s.speedup_decode_only
    assert s.to_dict() == kvatlas.simulate("llama-3.1-8b", "rtx-4090", "fp8_kv", prompt=32768, output=512, slo="tpot_ms=50").to_dict()


def test_tables_broadcast_like_numpy_and_equal_single_answers():
    methods = np.array(["full", "kivi:bits=2", "snapkv:budget=1024"])[:, None, None]
    t = kvatlas.simulate("llama-3.1-8b", ["h100-sxm"], methods, context=np.array([4096, 32768])[:, None], batch=[1, 8, 64])
    assert t.shape == (3, 2, 3) and t.step_ms.shape == (3, 2, 3)
    for i, j, k in [(0, 0, 0), (1, 1, 2), (2, 1, 1)]:
        one = kvatlas.simulate("llama-3.1-8b", "h100-sxm", str(methods[i, 0, 0]), context=[4096, 32768][j], batch=[1, 8, 64][k])
        for column in ("step_ms", "tokens_per_s", "size_factor", "energy_j_per_token", "bound_by"):
            assert t[column][i, j, k] == one[column], column
        assert t.speedup_decode_only[i, j, k] == pytest.approx(one.speedup_decode_only, rel=1e-14)  # a ratio of ms, there of seconds
        assert t.fits[i, j, k] == one.memory["fits"] and t.peak_bytes[i, j, k] == one.memory["peak_bytes"]
        assert t.at(i, j, k).to_dict() == one.to_dict()
    assert t["method"][2, 0, 0] == "snapkv:budget=1024" and t["gpu"][0, 0, 0] == "h100-sxm"


def test_tables_of_workloads_equal_single_answers():
    t = kvatlas.simulate("llama-3.1-8b", "rtx-4090", ["full", "fp8_kv"], prompt=np.array([2048, 32768])[:, None], output=256, slo="tpot_ms=60")
    one = kvatlas.simulate("llama-3.1-8b", "rtx-4090", "fp8_kv", prompt=32768, output=256, slo="tpot_ms=60")
    for column in ("requests_per_s", "ttft_ms", "tpot_ms", "speedup", "speedup_decode_only", "concurrency", "size_factor"):
        assert t[column][1, 1] == one[column], column


def test_what_cannot_be_raises_alone_and_is_a_sentence_in_a_table():
    with pytest.raises(NotImplementedError, match="residual_window is 128, must be a multiple of group_size"):
        kvatlas.simulate("llama-3.1-8b", "h100-sxm", "kivi:group_size=48", context=4096)
    t = kvatlas.simulate("llama-3.1-8b", "h100-sxm", ["full", "kivi:group_size=48"], context=4096)
    assert math.isnan(t.step_ms[1]) and "must be a multiple of group_size (48)" in t.why_not[1] and t.why_not[0] is None and t.bound_by[1] == ""
    full = kvatlas.simulate("llama-3.1-8b", "rtx-4090", context=131072, batch=[1, 64])
    assert not full.fits[1] and "GiB" in full.why_not[1] and full.step_ms[1] > 0


@pytest.mark.parametrize(("arguments", "sentence"), [
    ({}, "needs a workload"),
    ({"context": 1, "prompt": 1}, "not both"),
    ({"context": 1, "rate": 1.0}, "rate is part of a workload"),
    ({"prompt": 1, "output": 1, "batch": 2}, "which has concurrency"),
    ({"context": 0}, "context is 0"),
    ({"context": [4096, 0]}, "context is 0"),
    ({"context": 4096, "batch": [1, 0]}, "batch is 0"),
    ({"context": "32 K"}, 'context is "32 K"'),
    ({"context": [1.5]}, "must be a whole number"),
    ({"context": 4096, "plan": "fast"}, "must be ideal or released"),
    ({"context": 4096, "weights": "fp7"}, "fp7"),
    ({"prompt": 1024, "output": 64, "slo": {"ttft": 1}}, "slo has ttft"),
    ({"prompt": 1024, "output": 64, "rate": 1.0, "concurrency": 2}, "rate and concurrency"),
    ({"prompt": 1024, "output": 64, "concurrency": 2.7}, "concurrency is 2.7, must be a whole number from 1 to 2147483647"),
    ({"prompt": 1024, "output": 64, "concurrency": [4, 2.7]}, "concurrency is 2.7, must be a whole number"),
    ({"prompt": [1024], "output": 64, "concurrency": 5_000_000_000}, "concurrency is 5e+09, must be a whole number"),
    ({"prompt": 1024, "output": 64, "turns": [1, 2**32 + 1]}, "turns is 4294967297, must be a whole number"),
    ({"prompt": 1024, "output": 64, "turns": 1.5}, "turns is 1.5, must be a whole number"),
    ({"context": 4096, "batch": 3_000_000_000}, "batch is 3000000000, must be a whole number from 1 to 2147483647"),
    ({"context": 4096, "batch": [1, 3_000_000_000]}, "batch is 3000000000, must be a whole number from 1 to 2147483647"),
    ({"context": 2**70}, "context is 1180591620717411303424, must be below 2^63"),
    ({"context": [2**70]}, "context is 1180591620717411303424, must be below 2^63"),
    ({"context": np.array([2**63], np.uint64)}, "context is 9223372036854775808, must be below 2^63"),
    ({"context": 4096, "tp": 1.5}, "tp is 1.5, must be a whole number"),
    ({"context": 4096, "tp": 2**32 + 1}, "tp is 4294967297, must be a whole number"),
])
def test_wrong_questions_are_value_errors(arguments, sentence):
    with pytest.raises(ValueError) as caught:
        kvatlas.simulate("llama-3.1-8b", "h100-sxm", **arguments)
    assert sentence in str(caught.value)


def test_threads_do_not_change_a_bit():
    ask = dict(context=np.arange(1, 3001) * 16, batch=4)
    one, two = (kvatlas.simulate("llama-3.1-8b", "a100-sxm-80gb", "kivi", threads=n, **ask) for n in (1, 2))
    assert all(np.array_equal(one[c], two[c]) for c in ("step_ms", "cache_bytes", "energy_j_per_token"))


def test_a_million_points_are_one_call():
    t = kvatlas.simulate("llama-3.1-8b", "h100-sxm", "kivi:bits=2", context=np.arange(1, 1001)[:, None] * 128, batch=np.arange(1, 1001))
    assert t.size == 1_000_000 and np.isfinite(t.step_ms).all() and (np.diff(t.cache_bytes, axis=1) > 0).all()


def test_results_become_frames():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    t = kvatlas.simulate("llama-3.1-8b", "h100-sxm", ["full", "kivi"], context=4096)
    frame = t.to_pandas()
    assert list(frame["method"]) == ["full", "kivi"] and frame["step_ms"].dtype == float and isinstance(frame, pandas.DataFrame)
    assert kvatlas.simulate("llama-3.1-8b", "h100-sxm", context=4096).to_pandas().loc[0, "memory.fits"]
    assert "<table" in t._repr_html_()


def test_tables_become_json_and_parquet(tmp_path):
    t = kvatlas.simulate("llama-3.1-8b", "h100-sxm", ["full", "kivi:group_size=48"], context=[[4096], [8192]])
    columns = json.loads(t.to_json())
    assert columns["method"] == ["full", "kivi:group_size=48"] * 2 and columns["context"] == [4096, 4096, 8192, 8192]
    assert columns["step_ms"][0] == t.step_ms[0, 0] and columns["step_ms"][1] is None and columns["fits"] == [True, False] * 2
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    t.to_parquet(tmp_path / "t.parquet")
    table = parquet.read_table(tmp_path / "t.parquet")
    assert table.num_rows == 4 and table.column("step_ms")[0].as_py() == t.step_ms[0, 0] and list(tmp_path.iterdir()) == [tmp_path / "t.parquet"]


def test_breakeven_names_borders_and_reasons():
    b = kvatlas.breakeven("llama-3.1-8b", "a100", "kivi:bits=2", batch=8)
    assert b.context is None or b.context > 0
    assert b.reason and "context:" in b.explain()
    with pytest.raises(ValueError, match="must differ"):
        kvatlas.breakeven("llama-3.1-8b", "a100", "full")
    with pytest.raises(ValueError, match="batch is 3000000000, must be a whole number"):
        kvatlas.breakeven("llama-3.1-8b", "a100", "kivi:bits=2", batch=3_000_000_000)
    for name, value in {"chunk": 4096, "gpu_memory_utilization": 0.8, "dp": 2}.items():
        with pytest.raises(ValueError, match=f"{name} changes no single decode step, needs output"):
            kvatlas.breakeven("llama-3.1-8b", "a100", "kivi:bits=2", **{name: value})
    assert kvatlas.breakeven("llama-3.1-8b", "a100", "kivi:bits=2", output=64, max_context="8K", context="4K", chunk=4096).reason


def test_recommend_ranks_and_excludes():
    r = kvatlas.recommend("llama-3.1-8b", "rtx-4090", prompt="8K", output=256, methods=["fp8_kv", "kivi:bits=2|4", "cachegen"], slo="tpot_ms=50")
    assert len(r) == 4  # with full, the yardstick
    assert r.advised["recipe"] == "fp8_kv"
    assert r.rows[0]["rank"] >= 1 and isinstance(r.explain(), str) and "<table" in r._repr_html_()
    assert r.why_not("cachegen")


def test_serving_is_deterministic():
    ask = dict(prompt=1024, output=64, rate=4.0, requests=200, slo="ttft_ms=2000")
    a, b = (kvatlas.serve("llama-3.1-8b", "h100-sxm", "fp8_kv", **ask) for _ in range(2))
    assert a.to_dict() == b.to_dict() and a.completed == 200 and a.ttft_ms["p50"] <= a.ttft_ms["p99"]
    with pytest.raises(ValueError, match="give one of rate"):
        kvatlas.serve("llama-3.1-8b", "h100-sxm", prompt=1, output=1)


def test_serving_refuses_what_would_change_nothing(tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,374,44\n2023-11-16 18:17:04.0319600,396,109\n")
    assert kvatlas.serve("llama-3.1-8b", "h100-sxm", trace=trace, speed=2.0).completed == 2
    for name, value in {"prefix_hit": 0.5, "turns": 2, "spread": 0.1, "warm": True, "seed": 3, "rate": 1.0, "prompt": 10}.items():
        with pytest.raises(ValueError, match=f"{name} contradicts trace"):
            kvatlas.serve("llama-3.1-8b", "h100-sxm", trace=trace, **{name: value})
    ask = dict(prompt=1024, output=64, rate=4.0)
    for wrong, sentence in [({"requests": -5}, "requests is -5, must be a whole number from 1 to 50000000"), ({"requests": 0}, "requests is 0"), ({"speed": 2.0}, "speed belongs to trace"),
                            ({"prefill_replicas": 2}, "prefill_replicas needs disaggregated"), ({"disaggregated": True, "dp": 2}, "dp contradicts disaggregated"),
                            ({"rate": None, "concurrency": 2.7}, "concurrency is 2.7, must be a whole number"), ({"seed": -1}, "seed is -1"), ({"max_num_seqs": 2**40}, "max_num_seqs is"),
                            ({"requests": True}, "requests is True")]:
        with pytest.raises(ValueError, match=sentence):
            kvatlas.serve("llama-3.1-8b", "h100-sxm", **{**ask, **wrong})


def test_long_calls_let_other_threads_run():
    ticks = []
    stop = threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(1)
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    kvatlas.simulate("llama-3.1-8b", "h100-sxm", "kivi", context=np.arange(1, 200_001), batch=8, threads=1)
    stop.set()
    thread.join()
    assert len(ticks) > 10


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals reach the main thread")
def test_ctrl_c_ends_a_long_call():
    context = np.broadcast_to(np.arange(1, 1_000_001), (3, 1_000_000))
    timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        kvatlas.simulate("llama-3.1-8b", "h100-sxm", "kivi", context=context, batch=8)
    timer.join()


@pytest.mark.parametrize("call", [
    lambda: kvatlas.serve("llama-3.1-8b", "h100-sxm", prompt=1024, output=64, rate=4.0, requests=20_000_000),
    lambda: [kvatlas.recommend("llama-3.1-8b", "rtx-4090", prompt="32K", output=512) for _ in range(100)],
    lambda: [kvatlas.breakeven("llama-3.1-8b", "a100", "kivi:bits=2", batch=8, output=64) for _ in range(10_000)],
], ids=["serve", "recommend", "breakeven"])
@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals reach the main thread")
def test_ctrl_c_ends_questions_that_simulate(call):
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        call()
    timer.join()
