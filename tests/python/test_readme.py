"""The README's tours in Python and in the shell, verbatim."""
import os
import pathlib
import re
import shutil
import subprocess

import kvatlas
import pytest

README = (pathlib.Path(__file__).parents[2] / "README.md").read_text()


def blocks_of(language):
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.S)
    assert blocks
    return blocks


def test_the_tour_of_the_readme_runs_as_it_stands(capsys):
    blocks = blocks_of("python")
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert "every bit equal" in capsys.readouterr().out


def test_the_tour_in_the_shell_runs_as_it_stands(tmp_path):
    built = pathlib.Path(os.environ.get("KVATLAS_PYTHONPATH", "")).parent / "kvatlas"
    program = str(built) if os.access(built, os.X_OK) and built.is_file() else shutil.which("kvatlas")
    if program is None:
        pytest.skip("the program kvatlas is not built")
    # Where the demo leaves them.
    (tmp_path / "build" / "release").mkdir(parents=True)
    (tmp_path / "build" / "release" / "kvatlas").symlink_to(pathlib.Path(program).resolve())
    kvatlas.sweep({"models": ["llama-3.1-8b"], "gpus": ["rtx-4090"], "methods": ["full", "kivi:bits=2", "fp8_kv"], "contexts": "32K", "batches": [1, 2]}, tmp_path / "atlas.sqlite")
    for block in blocks_of("bash"):
        run = subprocess.run(["bash", "-euo", "pipefail", "-c", block], cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
    assert run.stderr == "" and "on the front" in run.stdout and run.stdout.endswith("3 cases, 0 differ\n")
