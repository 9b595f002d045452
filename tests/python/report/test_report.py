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
from atlas import CONTEXTS, METHODS, POISON, ROOT, make_store, poison
from report import StoreError, read, report
from report.pack import pack
from report.page import build, plotly_file
from report.reader import NEWEST_SCHEMA
from report.pick import KINDS, _KIND_OF, advised, lit, opening, strongest

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
    # A little too much costs large batches first; the smallest, which charts start from, stays as long as anything can.
    points = 3000
    for batches in ({1, 2, 4, 8, 16}, {1, 2, 4, 8}, {1}):
        data = read(store, points=points)
        assert {b for b in data["points"]["batch"] if b <= 16} == batches and set(data["points"]["context"]) == set(CONTEXTS)
        points = int(data["meta"]["points_drawn"] / 1.1) - 1


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_store_is_drawn_without_the_tables_it_lacks(tmp_path: Path, version: int) -> None:
    data = read(make_store(tmp_path / "old.sqlite", version=version))
    assert data["meta"]["schema"] == version and data["caches"]["model"] == [] and data["validation"] == []
    assert len(data["claims"]) == 3


@pytest.mark.parametrize("content, sentence", [
    (None, "no such file"), (b"not a database, only text that is long enough to be read as one" * 20, "cannot be read as a store"), ("other", "not a kvatlas store, an SQLite database of something else"),
    ("newer", f"is newer than this package's {NEWEST_SCHEMA}; upgrade the package")])
def test_what_is_no_store_is_refused_in_one_sentence(tmp_path: Path, content: Any, sentence: str) -> None:
    path = tmp_path / "x.sqlite"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        db = sqlite3.connect(path)
        db.executescript("CREATE TABLE t(x);" + (f"PRAGMA application_id = 0x6b766174; PRAGMA user_version = {NEWEST_SCHEMA + 1};" if content == "newer" else ""))
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


@pytest.mark.large
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
    assert data["meta"]["schema"] == NEWEST_SCHEMA
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


def test_figures_that_cannot_be_written_leave_the_page_and_the_folder_as_they_were(store: Path, page: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    out, figures = tmp_path / "report.html", tmp_path / "figures"
    out.write_text("old page")
    (figures / "tradeoff.png.part").mkdir(parents=True)
    (figures / "tradeoff.svg").write_text("old figure")
    with pytest.raises(StoreError, match="tradeoff.png.part: cannot be written"):
        report(store, out, figures=figures)
    assert isinstance(StoreError("x"), OSError)
    assert out.read_text() == "old page" and (figures / "tradeoff.svg").read_text() == "old figure"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figures", "report.html"] and sorted(p.name for p in figures.iterdir()) == ["tradeoff.png.part", "tradeoff.svg"]


def test_the_quality_figure_is_decided_by_the_model_that_it_draws(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from report.figures import draw_all
    data = read(store)
    drawn = opening(data)
    assert drawn is not None
    own = data["models"][drawn["model"]]["slug"]
    # Another model stands first: what is drawn stays what it was.
    data["models"].append(dict(data["models"][0], slug="another"))
    data["models"][0], data["models"][-1] = data["models"][-1], data["models"][0]
    place = {0: len(data["models"]) - 1}
    data["configurations"]["model"] = [place.get(m, m) for m in data["configurations"]["model"]]
    again = opening(data)
    assert again is not None and data["models"][again["model"]]["slug"] == own and again["model"] != 0
    assert "quality" in {f.stem for f in draw_all(data, tmp_path, formats=("svg",))}


@pytest.mark.parametrize("damage, sentence", [
    ("UPDATE configurations SET method = 99 WHERE id = 1", "a row names the id 99, which its table does not hold"),
    ("UPDATE methods SET params = '{' WHERE id = 2", "a text that should be JSON is not"),
    ("UPDATE methods SET params = '[1]' WHERE id = 2", "a text that should be JSON is not"),
    ("UPDATE predictions SET step_s = 9e999 WHERE id = 5", "the column step_s of points cannot be drawn: it holds an infinite figure"),
    ("UPDATE claims SET published = 9e999", "a figure of quality, validation, measurements or claims is infinite"),
    ("UPDATE ledgers SET side = 'left'", "the column side of ledgers cannot be drawn: it holds 'left'"),
    ("DELETE FROM predictions; DELETE FROM workload_predictions; DELETE FROM infeasible; DELETE FROM configurations", "holds no configuration yet"),
    ("DROP TABLE methods", "cannot be read as a store (no such table: methods)")])
def test_a_damaged_store_is_refused_in_one_sentence(tmp_path: Path, damage: str, sentence: str) -> None:
    path = make_store(tmp_path / "a.sqlite")
    db = sqlite3.connect(path)
    db.executescript("PRAGMA foreign_keys = OFF;" + damage)
    db.close()
    with pytest.raises(StoreError, match=re.escape(sentence)) as raised:
        pack(read(path))
    assert "\n" not in str(raised.value)


def test_a_store_in_which_nothing_fits_is_no_traceback(tmp_path: Path) -> None:
    try:
        plotly_file()
    except StoreError as error:
        pytest.skip(str(error))
    path = make_store(tmp_path / "a.sqlite", workloads=False)
    db = sqlite3.connect(path)
    db.execute("UPDATE predictions SET fits = 0")
    db.commit()
    db.close()
    data = read(path)
    assert opening(data) is None
    assert "<noscript><p>The store holds no prediction that fits.</p></noscript>" in build(data)


def test_the_opening_takes_the_first_model_and_gpu_of_which_a_step_fits(tmp_path: Path) -> None:
    path = make_store(tmp_path / "a.sqlite", workloads=False)
    db = sqlite3.connect(path)
    db.execute("UPDATE predictions SET fits = 0 WHERE configuration IN (SELECT id FROM configurations WHERE model = 1)")
    db.commit()
    db.close()
    assert opening(read(path))["question"].startswith("What should Wide 7B run on one RTX-9000")


def test_measurements_are_drawn_evenly_by_kind_and_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from report import reader
    assert reader._shares([1, 100, 100], 21) == [1, 10, 10] and reader._shares([3, 2], 100) == [3, 2]
    path = make_store(tmp_path / "a.sqlite")
    db = sqlite3.connect(path)
    db.execute("UPDATE measurements SET gpu = 'A100' WHERE rowid > 36")  # 18 and 2 of each kernel
    db.commit()
    db.close()
    monkeypatch.setattr(reader, "MOST_MEASUREMENTS", 16)
    data = read(path)
    counts: Dict[Any, int] = {}
    for m in data["measurements"]:
        counts[m["kind"], m["gpu"]] = counts.get((m["kind"], m["gpu"]), 0) + 1
    assert counts == {("decode_attention", "A100"): 2, ("decode_attention", "H200"): 6, ("gemm", "A100"): 2, ("gemm", "H200"): 6}
    assert data["meta"]["measurements_total"] == 40
    values = [m["value"] for m in data["measurements"] if (m["kind"], m["gpu"]) == ("gemm", "H200")]
    assert max(values) / min(values) > 50  # along the whole of its rows


def test_nothing_that_a_store_says_becomes_part_of_the_page(tmp_path: Path) -> None:
    try:
        plotly_file()
    except StoreError as error:
        pytest.skip(str(error))
    text = build(read(poison(make_store(tmp_path / "a.sqlite"))), title=POISON)
    shell = re.sub(r'<script type="text/plain"[^>]*>.*?</script>', "", text, flags=re.S)
    assert "<img" not in shell.split("<script>")[0] and "@DATA@@PLOTLY@" in shell
    assert text.count('<script type="text/plain"') == 2 and text.count("</script>") == 3
    assert len(unpack(re.search(r'id="data">(.*?)</script>', text, re.S)[1])["methods"]) == len(METHODS)


def test_quality_of_the_model_itself_goes_before_a_stronger_grade_of_another() -> None:
    row = {"model": "a", "recipe": "kivi", "quality_model": "b", "grade": "M", "retained": 0.5}
    own = {**row, "quality_model": "a", "grade": "X", "retained": 0.9}
    assert strongest([row, own], "a")["kivi"] is own and strongest([row], "a")["kivi"] is row
    assert strongest([row, {**row, "grade": "P", "retained": 0.1}, {**row, "retained": 0.4}], "a")["kivi"]["retained"] == 0.4
    assert strongest([row], "b") == {}


def test_a_page_that_cannot_be_written_leaves_no_part_behind(store: Path, page: Path, tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(StoreError, match="cannot be written"):
        report(store, tmp_path / "report.html")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("points", [0, 999, 1_000_001, 1e5, True])
def test_points_out_of_range_are_refused(store: Path, tmp_path: Path, points: Any) -> None:
    with pytest.raises(StoreError, match="must be a whole number from 1000 to 1000000"):
        report(store, tmp_path / "report.html", points=points)


def test_components_of_ledgers_have_the_kinds_of_the_programs_table() -> None:
    text = (ROOT / "reference" / "components.cpp").read_text(encoding="utf-8")
    kinds = {"codes": "codes", "scales": "scales and zeros", "zeros": "scales and zeros", "codebooks": "codebooks", "indices": "indices", "residual": "newest tokens, plain",
             "rows": "plain rows", "state": "state"}
    theirs = {name: kinds[kind] for name, kind in re.findall(r'\{"(\w+)", BitKind::(\w+)\}', text)}
    assert len(theirs) > 60
    assert {name: KINDS[kind] for name, kind in _KIND_OF.items()} == theirs


def test_the_program_takes_o_as_a_value_and_a_title(store: Path, tmp_path: Path, page: Path) -> None:
    program = kvatlas()
    if "--title" not in subprocess.run([str(program), "report", "--help"], capture_output=True, text=True).stdout:
        pytest.skip("the program is older than this test")
    run = subprocess.run([str(program), "report", "--db", str(store), "-o", "r.html", "--title", "-o"], capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "KVATLAS_PYTHON": sys.executable})
    assert run.returncode == 0, run.stderr
    assert "<title>-o</title>" in (tmp_path / "r.html").read_text(encoding="utf-8")
