"""Builds the page: one HTML file with the data, the style, the script and the plotting library inside."""

from __future__ import annotations

import base64
import html
import importlib.util
import os
import re
import zlib
from pathlib import Path
from typing import Any, Dict, Optional

from .errors import StoreError
from .pack import pack
from .pick import advised, opening, speakers

SCRIPTS = ("data.js", "format.js", "state.js", "select.js", "draw.js", "charts.js", "steps.js", "panels.js", "table.js", "main.js")
# Where Debian's python3-plotly and a few others keep the library; the PyPI package is asked first.
PLOTLY_FILES = ("/usr/share/python3-plotly/plotly.js", "/usr/lib/python3/dist-packages/plotly/package_data/plotly.min.js",
                "/usr/share/javascript/plotly/plotly.min.js")


def page_folder() -> Path:
    """The page's sources: beside this file when installed, in viz/ of the source tree that holds this file or its build folder."""
    here = Path(__file__).resolve().parent
    for folder in (here / "page", *(parent / "viz" / "page" for parent in here.parents)):
        if (folder / "page.html").is_file():
            return folder
    raise StoreError("the report's page sources are missing from this installation of kvatlas")


def plotly_file() -> Path:
    """Plotly's JavaScript: KVATLAS_PLOTLY_JS, the installed `plotly` package, or Debian's python3-plotly."""
    candidates = [os.environ.get("KVATLAS_PLOTLY_JS", "")]
    spec = importlib.util.find_spec("plotly")
    if spec is not None and spec.submodule_search_locations:
        candidates += [str(Path(folder) / "package_data" / "plotly.min.js") for folder in spec.submodule_search_locations]
    for name in (*candidates, *PLOTLY_FILES):
        if name and Path(name).is_file():
            return Path(name)
    raise StoreError("the report draws with Plotly's JavaScript, which was not found: pip install plotly, or apt-get install python3-plotly")


def _compressed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 9)).decode()


def _summary(data: Dict[str, Any]) -> str:
    """Question, answer and first rows as plain HTML, for readers without JavaScript."""
    view = opening(data)
    if view is None:
        return "<p>The store holds no prediction that fits.</p>"
    best = advised(view)
    rows = "".join(f"<tr><td>{i + 1}</td><td>{html.escape(r['recipe'])}</td><td>{r['value']:.4g}</td><td>{r['low']:.4g} to {r['high']:.4g}</td><td>{r['size_factor']:.4g}x</td></tr>"
                   for i, r in enumerate([r for r in speakers(view) if r["deployable"]][:5]))
    return (f"<h1>{html.escape(view['question'])}</h1><p>{html.escape(best['recipe'] if best else 'The plain cache: full')}</p><table><tr><th>#</th><th>method</th><th>{html.escape(view['metric'])}</th><th>80 % interval</th><th>size factor</th></tr>{rows}</table>"
            "<p>Charts, filters and comparisons need JavaScript.</p>")


def build(data: Dict[str, Any], title: Optional[str] = None) -> str:
    """The page of what `reader.read` returned, as text."""
    folder = page_folder()
    parts = {
        "TITLE": html.escape(title or f"kvatlas: {data['meta']['db']}"),
        "STYLE": (folder / "page.css").read_text(encoding="utf-8"),
        "SUMMARY": _summary(data),
        "DATA": pack(data),
        "PLOTLY": _compressed(plotly_file().read_bytes()),
        "SCRIPT": "\n".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS),
    }
    text = (folder / "page.html").read_text(encoding="utf-8")
    # One pass: what a part holds is never read as a place for another.
    return re.sub(f"@({'|'.join(parts)})@", lambda place: parts[place[1]], text)
