"""Runs the tests of the report under ctest: report_test.py pages|browser|large [program]. What is missing is said, and skips."""
import importlib.util
import os
import pathlib
import sys

sys.dont_write_bytecode = True
HERE = pathlib.Path(__file__).resolve().parent / "report"
PARTS = {"pages": ["test_report.py", "-m", "not large"], "browser": ["test_browser.py", "-m", "not large"], "large": ["-m", "large"]}


class Count:
    """Counts what passed, and the reasons of what did not run."""

    def __init__(self):
        self.passed, self.skipped = 0, {}

    def pytest_runtest_logreport(self, report):
        self.passed += report.when == "call" and report.passed
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            reason = reason.removeprefix("Skipped: ")
            self.skipped[reason] = self.skipped.get(reason, 0) + 1


def main():
    part = sys.argv[1]
    if importlib.util.find_spec("pytest") is None:
        print("skipped: pytest is not installed")
        return 77
    import pytest
    if len(sys.argv) > 2 and pathlib.Path(sys.argv[2]).is_file():
        os.environ["KVATLAS"] = sys.argv[2]
    count = Count()
    words = [str(HERE / w) if w.endswith(".py") else w for w in PARTS[part]]
    if part == "large":
        words.insert(0, str(HERE))
    failed = pytest.main(["-q", "-p", "no:cacheprovider", *words], plugins=[count])
    for reason, times in count.skipped.items():
        print(f"skipped {times}: {reason}")
    if failed:
        return int(failed)
    # What lacks the plotting library or the browser is a test that did not run, not one that passed.
    lacking = any("plotly" in reason or "Chromium" in reason or "playwright" in reason for reason in count.skipped)
    return 77 if lacking or not count.passed else 0


if __name__ == "__main__":
    sys.exit(main())
