"""Takes the screenshots of the documentation: python3 viz/screenshots/make.py report.html (needs NumPy, Pillow and Chromium)."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "python" / "report"))
from chromium import Chromium, executable  # noqa: E402

QUESTION = "#model=llama-3.1-8b&gpu=rtx-4090"
HERE = Path(__file__).resolve().parent


def take(browser: Chromium, page_file: Path, name: str, part: str, address: str = "", theme: str = "light", hover: str = "", height: int = 820) -> None:
    context = browser.new_context(viewport={"width": 1240, "height": height}, color_scheme=theme)
    page = context.new_page()
    page.goto(page_file.resolve().as_uri() + QUESTION + address)
    page.wait_for_function("window.opened")
    page.evaluate("part => document.querySelector(part).scrollIntoView()", part)
    page.wait_for_timeout(2500)
    if hover:  # the mark whose name is written beside it
        at = page.evaluate("""name => { const plot = document.querySelector('#tradeoff .plot'), box = plot.getBoundingClientRect(), l = plot._fullLayout, a = plot.layout.annotations.find((x) => x.text === name);
          return [box.left + l.xaxis._offset + l.xaxis.l2p(a.x), box.top + l.yaxis._offset + l.yaxis.l2p(a.y)]; }""", hover)
        page.mouse.move(at[0], at[1])
        page.mouse.move(at[0] + 1, at[1])
        page.wait_for_selector("#card:not([hidden])")
    small(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).save(HERE / f"{name}.png", optimize=True)
    context.close()


def small(picture: Image.Image) -> Image.Image:
    """In 256 colours: grounds and lines, which are the commonest, keep the page's own, and so do marks, however few their pixels."""
    colours, place, counts = np.unique(np.asarray(picture).reshape(-1, 3), axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    palette = colours[order[:128]]
    if len(rest := colours[order[128:]]):
        shared = Image.fromarray(rest[None]).quantize(128, method=Image.Quantize.MAXCOVERAGE).convert("RGB")
        palette = np.concatenate([palette, np.unique(np.asarray(shared).reshape(-1, 3), axis=0)])
    nearest = np.square(colours[:, None].astype(int) - palette[None]).sum(axis=2).argmin(axis=1).astype(np.uint8)
    out = Image.fromarray(nearest[place].reshape(picture.size[::-1]), "P")
    out.putpalette(palette.tobytes())
    return out


def main() -> None:
    report = Path(sys.argv[1])
    browser = Chromium(executable() or sys.exit("no Chromium"))
    take(browser, report, "answer", "#answer-part")
    take(browser, report, "tradeoff", "#tradeoff-part", hover="turboquant")
    take(browser, report, "steps-dark", "#steps-part", theme="dark", height=1060)
    take(browser, report, "compare", "#compare-part", "&a=turboquant@llama-3.1-8b@rtx-4090&b=fp8_kv@llama-3.1-8b@rtx-4090", height=1000)
    take(browser, report, "evidence", "#evidence-part", height=1000)
    browser.close()


if __name__ == "__main__":
    main()
