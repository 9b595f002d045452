"""The package's annotations and the stub of the extension module, under a type checker."""
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def test_the_package_passes_a_strict_type_checker(tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed")
    run = subprocess.run([sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", "--cache-dir", tmp_path], cwd=ROOT / "python", capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_stub_names_what_the_extension_has():
    import ast

    from kvatlas import _native

    stub = ast.parse((ROOT / "python" / "kvatlas" / "_native.pyi").read_text())
    names = {n.name for n in stub.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    assert names == {n for n in dir(_native) if not n.startswith("__")}
    for c in (n for n in stub.body if isinstance(n, ast.ClassDef)):
        members = {n.name for n in c.body if isinstance(n, ast.FunctionDef)} - {"__init__"}
        assert members == {n for n in vars(getattr(_native, c.name)) if not n.startswith("_")}, c.name
