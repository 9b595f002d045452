"""Stores, pages and a browser for the tests of the report. What is missing skips with its reason."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any, Iterator

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "large: makes or opens a store of 100,000 decode steps")


def _load_report() -> None:
    """The report is pure Python: it is tested from the source tree, without the compiled package, under the name `report`."""
    folder = HERE.parents[2] / "python" / "kvatlas" / "report"
    spec = importlib.util.spec_from_file_location("report", folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["report"] = module
    spec.loader.exec_module(module)


_load_report()
from atlas import make_store  # noqa: E402
from report import StoreError, report  # noqa: E402
from report.page import plotly_file  # noqa: E402


def _needs_plotly() -> None:
    try:
        plotly_file()
    except StoreError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("store") / "atlas.sqlite")


@pytest.fixture(scope="session")
def page(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    _needs_plotly()
    out = tmp_path_factory.mktemp("page") / "report.html"
    report(store, out)
    return out


@pytest.fixture(scope="session")
def large_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100,000 decode steps."""
    _needs_plotly()
    folder = tmp_path_factory.mktemp("large")
    store = make_store(folder / "large.sqlite", copies=106)
    done = report(store, folder / "large.html", points=110_000)
    assert done["drawn"] >= 100_000
    return folder / "large.html"


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    from chromium import Chromium, Error, executable
    program = executable()
    if program is None:
        pytest.skip("no Chromium: ./dev test installs it as root, or apt-get install chromium, or KVATLAS_CHROMIUM=/path")
    try:
        chromium = Chromium(program)
    except (Error, OSError) as error:
        pytest.skip(f"Chromium does not start: {error}")
    yield chromium
    chromium.close()
