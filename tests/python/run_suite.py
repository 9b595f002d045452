"""Runs pytest under ctest: run_suite.py FILE [words for pytest...]. What did not run, and why, is printed and stands in FILE, because ctest
hides the output of what passes; without a skip there is no FILE. 77 says that nothing ran."""
import importlib.util
import pathlib
import sys

sys.dont_write_bytecode = True
NEEDED = ("pytest", "numpy")


class Count:
    """Counts what passed, and the reasons of what did not run."""

    def __init__(self):
        self.passed, self.skipped = 0, {}

    def add(self, reason):
        reason = reason.removeprefix("Skipped: ")
        self.skipped[reason] = self.skipped.get(reason, 0) + 1

    def pytest_runtest_logreport(self, report):
        self.passed += report.when == "call" and report.passed
        if report.skipped:
            self.add(report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr))

    def pytest_collectreport(self, report):  # a file that skips as a whole
        if report.skipped:
            self.add(report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr))

    def write(self, path):
        name = path.stem.removesuffix("_skips")
        lines = [f"{times} of {name}: {reason}" for reason, times in self.skipped.items()]
        print(*(f"skipped {line}" for line in lines), sep="\n")
        path.unlink(missing_ok=True)
        if lines:
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def run(path, words, needed=NEEDED):
    """(pytest's status, or 77 where it cannot run; what it counted)"""
    count = Count()
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        count.skipped = {f"{' and '.join(missing)} not installed": "all"}
        count.write(path)
        return 77, count
    import pytest
    status = int(pytest.main(["-p", "no:cacheprovider", *words], plugins=[count]))
    count.write(path)
    return status or (0 if count.passed else 77), count


if __name__ == "__main__":
    sys.exit(run(pathlib.Path(sys.argv[1]), sys.argv[2:])[0])
