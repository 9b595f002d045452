"""What the page carries, and what the command line says."""

from __future__ import annotations

import base64
import json
import os
import re
import sqlite3
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any, Dict

import pytest
from atlas import CONTEXTS, METHODS, ROOT, make_store
from report import StoreError, read, report
from report.pack import pack
from report.pick import advised, lit, opening

MAIN = ROOT / "python" / "kvatlas" / "report" / "__main__.py"


def unpack(text: str) -> Dict[str, Any]:
    blob = zlib.decompress(base64.b64decode(text))
    length = int.from_bytes(blob[:4], "little")
    header = json.loads(blob[4:4 + length])
    header["body"] = blob[4 + length:]
    return header


def test_everything_of_a_small_store_is_read(store: Path) -> None:
    data = read(store)
    db = sqlite3.connect(store)
    assert data["meta"]["points_total"] == data["meta"]["points_drawn"] == db.execute("SELECT count(*) FROM predictions").fetchone()[0]
    assert data["meta"]["thinned"] is None
    assert [m["recipe"] for m in data["methods"]] == [m[0] for m in METHODS]
    assert len(data["served"]["configuration"]) == 38 and sum(data["served"]["feasible"]) == 36  # kivi cannot be on the second model, snapkv not on one GPU
    assert data["scenarios"] == [{"chunk": 8192, "dp": 1, "engine": "vllm", "ep": 1, "gpu_memory_utilization": 0.9, "pp": 1, "tp": 1, "weights": "bf16"}]
    assert len(data["quality"]) == 6 and len(data["claims"]) == 3 and len(data["measurements"]) == 40
    assert data["points"]["tokens_per_s"][0] == pytest.approx(data["points"]["batch"][0] / data["points"]["step_s"][0])


def test_columns_come_out_of_the_packed_text_as_they_went_in(store: Path) -> None:
    import array
    data = read(store)
    header = unpack(pack(data))
    code, at, count = header["columns"]["points"]["step_s"]
    assert code == "f" and count == len(data["points"]["step_s"])
    raw = header["body"][at:at + 4 * count]
    together = bytes(raw[plane * count + i] for i in range(count) for plane in range(4))
    assert list(array.array("f", together)) == pytest.approx(data["points"]["step_s"], rel=1e-6)
    assert header["quality"][0]["recipe"] == "kivi"


def test_the_opening_question_is_the_workload_with_the_largest_gain(store: Path) -> None:
    view = opening(read(store))
    assert view is not None
    assert view["question"] == "What should Small 8B run on one RTX-9000 for 32,768 prompt + 512 output tokens, TPOT <= 50 ms?"
    assert [r["recipe"] for r in view["rows"]][:2] == ["pyramidkv", "streaming_llm"]
    coloured = lit(view)
    # The plain cache, what is advised (judged, however badly), what engines offer, research; one setting a method, slow_one does not pay.
    assert [r["recipe"] for r in coloured] == ["full", "streaming_llm", "turboquant", "quest", "fp8_kv", "pyramidkv", "kivi"]
    assert advised(view)["recipe"] == "streaming_llm"


def test_a_store_without_workloads_opens_on_decoding(tmp_path: Path) -> None:
    view = opening(read(make_store(tmp_path / "a.sqlite", workloads=False)))
    assert view is not None and view["metric"] == "tokens/s" and view["context"] == 32768


def test_a_large_store_is_thinned_and_says_so(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a.sqlite", copies=20)
    data = read(store, points=3000)
    assert data["meta"]["points_total"] > 15_000 and data["meta"]["points_drawn"] <= 3300
    assert re.match(r"[\d,]+ of [\d,]+ decode steps are drawn: .*The store holds them all\.", data["meta"]["thinned"])
    # The largest batch of each configuration and context that was kept stays.
    assert set(data["points"]["context"]) <= set(CONTEXTS)
    assert max(data["points"]["batch"]) == 16 + 16 * 100000 + 19


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_store_is_drawn_without_the_tables_it_lacks(tmp_path: Path, version: int) -> None:
    data = read(make_store(tmp_path / "old.sqlite", version=version))
    assert data["meta"]["schema"] == version and data["caches"]["model"] == [] and data["validation"] == []
    assert len(data["claims"]) == 3


@pytest.mark.parametrize("content, sentence", [
    (None, "no such file"), (b"not a database, only text that is long enough to be read as one" * 20, "cannot be read as a store"), ("other", "not a kvatlas store, an SQLite database of something else"),
    ("newer", "is newer than this package's 3; upgrade the package")])
def test_what_is_no_store_is_refused_in_one_sentence(tmp_path: Path, content: Any, sentence: str) -> None:
    path = tmp_path / "x.sqlite"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        db = sqlite3.connect(path)
        db.executescript("CREATE TABLE t(x);" + ("PRAGMA application_id = 0x6b766174; PRAGMA user_version = 4;" if content == "newer" else ""))
        db.close()
    with pytest.raises(StoreError, match=re.escape(sentence)) as raised:
        read(path)
    assert "\n" not in str(raised.value)


def test_the_page_needs_nothing_from_outside(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    shell = re.sub(r'<script type="text/plain"[^>]*>.*?</script>', "", text, flags=re.S)
    assert not re.findall(r'(?:src|href)="(?!#|data:,)[^"]+"', shell)
    assert "http://www.w3.org" in shell and not re.findall(r"https?://(?!www\.w3\.org)", shell)
    assert "@DATA@" not in text and "@SCRIPT@" not in text
    assert "<noscript><h1>What should Small 8B run" in text


def test_equal_stores_give_equal_pages(store: Path, page: Path, tmp_path: Path) -> None:
    report(store, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_the_page_of_100000_steps_stays_below_15_megabytes(large_page: Path) -> None:
    size = large_page.stat().st_size
    print(f"page of 100,000 decode steps: {size / 1e6:.2f} MB")
    assert size < 15e6


def test_the_module_runs_from_a_source_tree(store: Path, tmp_path: Path, page: Path) -> None:
    out = tmp_path / "report.html"
    run = subprocess.run([sys.executable, str(MAIN), "--db", str(store), "-o", str(out), "--json"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout)
    assert said["out"] == str(out) and said["bytes"] == out.stat().st_size and said["workloads"] == 38
    broken = subprocess.run([sys.executable, str(MAIN), "--db", str(tmp_path / "none.sqlite")], capture_output=True, text=True)
    assert broken.returncode == 1 and broken.stderr == f"kvatlas report: {tmp_path}/none.sqlite: no such file\n"


def kvatlas() -> Path:
    for path in (os.environ.get("KVATLAS"), ROOT / "build" / "release" / "kvatlas"):
        if path and Path(path).is_file():
            return Path(path)
    pytest.skip("the program kvatlas is not built: KVATLAS=/path, or build/release/kvatlas")


def test_a_sweep_of_the_program_is_drawn_with_its_evidence(tmp_path: Path) -> None:
    program, db = kvatlas(), tmp_path / "a.sqlite"
    spec = {"models": ["llama-3.1-8b"], "gpus": ["rtx-4090"], "methods": ["full", "kivi:bits=2|4", "snapkv:budget=1024", "fp8_kv"], "contexts": ["4K", "32K"],
            "workloads": [{"prompt": "32K", "output": 512, "slo": {"tpot_ms": 50}}]}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    for words in (["sweep", "spec.json", "--db", str(db), "--quiet"], ["claims", "--db", str(db)], ["validate", "--db", str(db)]):
        run = subprocess.run([str(program), *words], cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
    data = read(db)
    assert data["meta"]["schema"] == 3
    assert len(data["claims"]) > 100 and len(data["validation"]) > 50 and len(data["measurements"]) > 100
    assert all(m["predicted"] > 0 for m in data["measurements"])
    # Ledger components add up to the cache's bits, and the plain cache takes 16 bits of a value.
    total: Dict[Any, float] = {}
    for model, method, context, bits in zip(*(data["ledgers"][k] for k in ("model", "method", "context", "bits_per_value"))):
        total[model, method, context] = total.get((model, method, context), 0) + bits
    whole = dict(zip(zip(*(data["caches"][k] for k in ("model", "method", "context"))), data["caches"]["bits_per_value"]))
    assert total == pytest.approx(whole)
    forgets = {data["methods"][m]["recipe"]: f for m, c, f in zip(*(data["caches"][k] for k in ("method", "context", "forgets"))) if c == 32768}
    assert forgets["full"] == 0 and forgets["kivi"] == 0 and forgets["snapkv"] == 1
    assert whole[0, [m["recipe"] for m in data["methods"]].index("full"), 32768] == 16


def test_the_program_hands_over_to_the_report(store: Path, tmp_path: Path, page: Path) -> None:
    program = kvatlas()
    environment = {**os.environ, "KVATLAS_PYTHON": sys.executable}
    run = subprocess.run([str(program), "report", "--db", str(store), "-o", str(tmp_path / "r.html")], capture_output=True, text=True, env=environment)
    assert run.returncode == 0 and (tmp_path / "r.html").is_file(), run.stderr
    missing = subprocess.run([str(program), "report", "--db", str(store)], capture_output=True, text=True, env={**environment, "KVATLAS_PYTHON": "no-such-python"})
    assert missing.returncode == 1
    assert missing.stderr == "kvatlas report: the report needs Python 3.9 or newer: no-such-python is missing or older; KVATLAS_PYTHON names another interpreter\n"


def test_figures_are_drawn_as_svg_and_png(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from report.figures import draw_all
    files = draw_all(read(store), tmp_path)
    assert sorted({f.stem for f in files}) == ["breakeven", "ledger", "measured", "memory", "parts", "quality", "throughput", "tradeoff"]
    assert all(f.stat().st_size > 5000 for f in files)
    first = (tmp_path / "tradeoff.svg").read_text()
    assert "turboquant" in first and "pattern" in first  # names are text, the uncalibrated format is hatched
    draw_all(read(store), tmp_path / "again", formats=("svg",))
    assert (tmp_path / "again" / "tradeoff.svg").read_text() == first
