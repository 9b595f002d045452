#!/usr/bin/env python3
"""Reads every #include of the project and fails on an arrow that the table of folders does not allow.

usage: check_layering.py SOURCE_DIR
"""
import pathlib
import re
import sys

# folder -> folders whose headers it may include (itself always); the longest matching prefix decides
ALLOWED = {
    "core": set(),
    "core/formats": {"core"},
    "core/kernels": {"core"},
    "core/linalg": {"core"},
    "core/io": {"core"},
    "reference": {"core"},
    "reference/primitives": {"core", "reference"},
    "reference/compose": {"core", "reference", "reference/primitives"},
    "models/files": {"core"},
    "models/tokenizer": {"core", "models/files"},
    "models": {"core", "reference", "reference/primitives", "reference/compose", "models/files", "models/tokenizer"},
    "models/runtime": {"core", "models", "reference", "reference/primitives", "reference/compose", "models/files", "models/tokenizer"},
    "models/evaluation": {"core", "models", "reference", "reference/primitives", "reference/compose", "models/files", "models/tokenizer", "models/runtime"},
    "gpu": {"core"},
    "gpu/verify": {"core", "gpu", "reference", "reference/primitives", "reference/compose"},
    "simulator": {"core", "models", "reference", "reference/primitives", "reference/compose"},
    "simulator/claims": {"core", "models", "reference", "reference/primitives", "reference/compose", "simulator"},
    "sweeps": {"core", "models", "reference", "reference/primitives", "reference/compose", "simulator"},
    "cli": {"core", "models", "models/files", "models/tokenizer", "models/runtime", "models/evaluation", "reference", "reference/primitives", "reference/compose", "simulator", "simulator/claims", "sweeps", "answers", "gpu", "gpu/verify"},
    "answers": {"core", "models", "reference", "reference/primitives", "reference/compose", "simulator", "sweeps"},
    "python": {"core", "models", "reference", "reference/primitives", "reference/compose", "simulator", "sweeps", "answers"},
}
# Published headline figures judge the simulator and must not shape it: only these may include or name their table.
CLAIM_READERS = ("reference/claims.", "simulator/claims/", "answers/", "cli/")
CLAIM_WORDS = ("reference/claims.hpp", "simulator/claims/", "all_claims", "parse_claims", "claims_text", "claims.csv", "setups.csv")
METHOD = {"core", "reference", "reference/primitives"}  # reference/<family>/
CORE_PARTS = {"core/formats", "core/kernels", "core/linalg", "core/io"}


def folder_of(path: str) -> str:
    parts = path.split("/")
    for n in range(len(parts) - 1, 0, -1):
        if "/".join(parts[:n]) in ALLOWED:
            return "/".join(parts[:n])
    return parts[0]


def claim_failures(name: str, text: str) -> list[str]:
    if name.startswith(CLAIM_READERS):
        return []
    return [f"{name}: may not know published claims ({word})" for word in CLAIM_WORDS if word in text]


def self_test() -> list[str]:
    """The rule on claims must find a calibration that reads them, and leave the others alone."""
    line = '#include "{}"\n'.format
    wrong = [("simulator/calibrate.cpp", line("reference/claims.hpp")), ("simulator/fit/rows.cpp", line("simulator/claims/judge.hpp")),
             ("simulator/constants.cpp", "for (const Claim& c : all_claims())"), ("sweeps/runner.cpp", 'open("reference/claims.csv")')]
    right = [("simulator/claims/judge.cpp", line("reference/claims.hpp")), ("cli/commands/claims.cpp", line("simulator/claims/judge.hpp")),
             ("simulator/calibrate.cpp", line("simulator/constants.hpp"))]
    failures = [f"self test: {name} was let through" for name, text in wrong if not claim_failures(name, text)]
    return failures + [f"self test: {name} was refused" for name, text in right if claim_failures(name, text)]


def main() -> int:
    root = pathlib.Path(sys.argv[1])
    include = re.compile(r'^\s*#include\s+"([^"]+)"')
    failures, files = self_test(), 0
    for top in ("core", "reference", "models", "gpu", "simulator", "sweeps", "answers", "cli", "python"):
        for path in sorted((root / top).rglob("*.[ch]pp")):
            files += 1
            name = path.relative_to(root).as_posix()
            here = folder_of(name)
            parts = name.split("/")
            failures += claim_failures(name, path.read_text())
            method = parts[0] == "reference" and len(parts) > 2 and parts[1] not in ("primitives", "compose")
            for number, line in enumerate(path.read_text().splitlines(), 1):
                found = include.match(line)
                if not found:
                    continue
                target = found.group(1)
                there = folder_of(target)
                allowed = set(METHOD if method else ALLOWED[here])
                if "core" in allowed or here.startswith("core"):
                    allowed |= CORE_PARTS | {"core"}
                if method:
                    # private parts of the same method, never another method
                    own = "/".join(parts[:3]).removesuffix(".cpp").removesuffix(".hpp") + "/"
                    target_parts = target.split("/")
                    if target_parts[0] == "reference" and len(target_parts) > 2 and target_parts[1] not in ("primitives", "compose"):
                        if not target.startswith(own):
                            failures.append(f"{name}:{number}: a method includes {target} of another method")
                        continue
                if there != here and there not in allowed:
                    failures.append(f"{name}:{number}: {here} may not include {target}")
                if target.startswith("sqlite3") and here != "sweeps":
                    failures.append(f"{name}:{number}: only sweeps includes sqlite3.h")
            if "sqlite3.h" in path.read_text() and here != "sweeps":
                failures.append(f"{name}: only sweeps includes sqlite3.h")
    if files == 0:
        failures.append("no source file found")
    for failure in failures:
        print(failure)
    print(f"layering: {files} files, {len(failures)} forbidden includes")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
