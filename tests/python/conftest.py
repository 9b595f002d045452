"""The package under test is the one that the build made (KVATLAS_PYTHONPATH), or the installed one."""
import os
import sys

import pytest

if path := os.environ.get("KVATLAS_PYTHONPATH"):
    sys.path.insert(0, path)
    os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (path, os.environ.get("PYTHONPATH")) if p)  # what a test starts finds it too


@pytest.fixture
def spec():
    """A sweep of a few hundred points."""
    return {"models": ["llama-3.2-1b"], "gpus": ["rtx-4090", "h100-sxm"], "methods": ["full", "kivi:bits=2|4", "snapkv:budget=512..2048x2", "fp8_kv"],
            "contexts": "4K..16K+4K", "batches": [1, 4, 16]}


@pytest.fixture
def store(spec, tmp_path):
    import kvatlas

    path = tmp_path / "atlas.sqlite"
    kvatlas.sweep(spec, path)
    return path
