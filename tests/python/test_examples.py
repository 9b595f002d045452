"""The notebooks run, and are readable without running: their outputs are stored."""
import pathlib

import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[2] / "python" / "examples").glob("*.ipynb"))


def texts(cell):
    """What a cell prints; tables and other rich results as their plain text."""
    out = []
    for output in cell.get("outputs", []):
        if output["output_type"] == "stream":
            out.append("".join(output["text"]))
        elif "data" in output:
            out.append("".join(output["data"].get("text/plain", "")))
    return "".join(out)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_readable_without_running(path):
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    assert all(c.execution_count for c in code) and sum(1 for c in code if texts(c)) >= len(code) - 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_and_prints_where_it_printed(path):
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    stored = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(fresh, timeout=240, kernel_name="python3").execute()
    for was, now in zip(stored.cells, fresh.cells):
        if was.cell_type == "code":
            assert bool(texts(now)) == bool(texts(was)), was.source  # figures move with the calibration


def test_there_are_the_four_notebooks():
    assert [p.stem for p in NOTEBOOKS] == ["adding_a_method", "checking_a_kernel", "choosing_a_method", "what_if_hbm_were_faster"]
