#!/usr/bin/env python3
"""Fails where one namespace defines two classes of one name: the linker keeps one of their inline members for both, silently.

usage: check_names.py SOURCE_DIR
"""
import collections
import pathlib
import re
import sys

OPENS = re.compile(r"^namespace ([\w:]*) ?\{")
CLOSES = re.compile(r"^\}  // namespace")
DEFINES = re.compile(r"^(?:class|struct|union|enum class) (\w+)(?! *;)(?!::)\b[^;]*\{")


def classes(text: str) -> list[str]:
    """Full names of the classes that a file defines in named namespaces; those of anonymous ones are its own."""
    spaces: list[str] = []
    names = []
    for line in text.splitlines():
        if found := OPENS.match(line):
            spaces.append(found.group(1))
        elif CLOSES.match(line) and spaces:
            spaces.pop()
        elif (found := DEFINES.match(line)) and "" not in spaces:
            names.append("::".join([*spaces, found.group(1)]))
    return names


def self_test() -> list[str]:
    text = "namespace a::b {\nstruct X;\nnamespace {\nclass Own {\n};\n}  // namespace\nclass Y : Z {\n};\nstruct Y::Impl {\n};\n}  // namespace a::b\n"
    return [] if classes(text) == ["a::b::Y"] else [f"self test: found {classes(text)}"]


def main() -> int:
    root = pathlib.Path(sys.argv[1])
    defined = collections.defaultdict(set)
    for top in ("core", "reference", "models", "gpu", "simulator", "sweeps", "answers", "cli", "python"):
        for path in sorted((root / top).rglob("*.[ch]pp")):
            for name in classes(path.read_text()):
                defined[name].add(path.relative_to(root).as_posix())
    failures = self_test() + [f"{name} is defined in {' and in '.join(sorted(files))}" for name, files in defined.items() if len(files) > 1]
    if not defined:
        failures.append("no class found")
    for failure in failures:
        print(failure)
    print(f"names: {len(defined)} classes, {len(failures)} defined twice")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
