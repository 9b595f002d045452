"""What did not run is said: the runner that ctest calls."""
import pathlib
import subprocess
import sys

RUNNER = pathlib.Path(__file__).with_name("run_suite.py")


def run(folder, *python):
    return subprocess.run([sys.executable, *python, RUNNER, folder / "some_skips.txt", "-q", "-c", folder / "none.ini", "--rootdir", folder, folder], capture_output=True, text=True, cwd=folder)


def test_skips_stand_in_a_file_with_their_reasons_and_their_number(tmp_path):
    (tmp_path / "none.ini").write_text("[pytest]\n")
    test = tmp_path / "test_it.py"
    test.write_text("import pytest\ndef test_a(): pass\n@pytest.mark.parametrize('n', [1, 2])\ndef test_b(n): pytest.importorskip('no_such_module', reason='no_such_module is not installed')\n")
    (tmp_path / "test_whole.py").write_text("import pytest\npytest.importorskip('no_such_module', reason='a file lacks it')\n")
    assert run(tmp_path).returncode == 0
    assert sorted((tmp_path / "some_skips.txt").read_text().splitlines()) == ["1 of some: a file lacks it", "2 of some: no_such_module is not installed"]
    test.write_text("def test_a(): pass\n")
    (tmp_path / "test_whole.py").unlink()
    assert run(tmp_path).returncode == 0 and not (tmp_path / "some_skips.txt").exists()
    test.write_text("def test_a(): assert False\n")
    assert run(tmp_path).returncode == 1
    test.write_text("import pytest\ndef test_a(): pytest.skip('nothing to do')\n")
    assert run(tmp_path).returncode == 77


def test_a_python_without_pytest_skips_aloud(tmp_path):
    found = run(tmp_path, "-I", "-S")
    assert found.returncode == 77 and (tmp_path / "some_skips.txt").read_text() == "all of some: pytest and numpy not installed\n", found.stderr
