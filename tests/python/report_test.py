"""Runs the tests of the report under ctest: report_test.py pages|browser|large program file. What is missing is said, stands in the file, and skips."""
import os
import pathlib
import sys

sys.dont_write_bytecode = True
HERE = pathlib.Path(__file__).resolve().parent / "report"
sys.path.insert(0, str(HERE.parent))
from run_suite import run  # noqa: E402

PARTS = {"pages": ["test_report.py", "-m", "not large"], "browser": ["test_browser.py", "-m", "not large"], "large": ["-m", "large"]}
LIBRARIES = ("plotly", "matplotlib", "Chromium")


def main():
    part, program, skips = sys.argv[1:]
    if pathlib.Path(program).is_file():
        os.environ["KVATLAS"] = program
    words = [str(HERE / w) if w.endswith(".py") else w for w in PARTS[part]]
    if part == "large":
        words.insert(0, str(HERE))
    status, count = run(pathlib.Path(skips), ["-q", *words], needed=("pytest",))
    # What lacks a library or the browser is a test that did not run, not one that passed.
    lacking = any(name in reason for reason in count.skipped for name in LIBRARIES)
    return 77 if lacking and status == 0 else status


if __name__ == "__main__":
    sys.exit(main())
