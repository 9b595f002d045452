"""The README's Python, verbatim."""
import pathlib
import re


def test_the_tour_of_the_readme_runs_as_it_stands(capsys):
    text = (pathlib.Path(__file__).parents[2] / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert "every bit equal" in capsys.readouterr().out
