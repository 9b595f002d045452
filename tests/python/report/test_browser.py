"""The page in a real browser, opened from a file: no server, no network, no error on the console."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Iterator, List

import pytest


class Opened:
    """A page, what it complained about, and what it asked the network for."""

    def __init__(self, browser: Any, path: Path, address: str = "", **context: Any):
        self.context = browser.new_context(viewport={"width": 1280, "height": 900}, **context)
        self.page = self.context.new_page()
        self.complaints = self.page.complaints
        started = time.monotonic()
        self.page.goto(path.as_uri() + address)
        self.page.wait_for_function("window.opened")
        self.seconds = time.monotonic() - started

    @property
    def requests(self) -> List[str]:
        return [url for url in self.page.requests if not url.startswith(("file:", "data:", "blob:"))]

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def copied(self) -> str:
        """What was copied last; the clipboard takes its time."""
        self.page.wait_for_function("window.lastCopied")
        return str(self.page.evaluate("window.lastCopied"))

    def see(self, selector: str) -> None:
        """Scrolls to a part and waits until it stands still: charts above it are drawn when they come near."""
        before = None
        while (now := self.page.bounding_box(selector)) != before:
            before = now
            self.page.evaluate("s => document.querySelector(s).scrollIntoView({block: 'center'})", selector)
            self.page.wait_for_timeout(150)

    def point(self, chart: str, name: str) -> Any:
        """Where on the screen the mark of a name in colour stands: of the trace whose only point is in that row."""
        self.see(f"#{chart} .plot")
        return self.page.evaluate("""([chart, name]) => {
          const plot = document.querySelector(`#${chart} .plot`), box = plot.getBoundingClientRect(), l = plot._fullLayout;
          const label = [...document.querySelectorAll(`#legend .series`)].map((b) => b.textContent.trim());
          if (!label.includes(name)) return null;
          const a = plot.layout.annotations.find((x) => x.text === name);
          return { x: box.left + l.margin.l + l.xaxis.l2p(a.x) , y: box.top + l.margin.t + l.yaxis.l2p(a.y) };
        }""", [chart, name])


@pytest.fixture
def opened(browser: Any, page: Path) -> Iterator[Opened]:
    o = Opened(browser, page)
    yield o
    assert o.complaints == [] and o.requests == []
    o.context.close()


def test_it_opens_on_question_answer_and_the_first_rows(opened: Opened) -> None:
    assert opened.page.title() == "kvatlas: atlas.sqlite"
    assert opened.page.eval_on_selector_all("#question select", "all => all.map((s) => s.selectedOptions[0].textContent)") == ["Small 8B", "RTX-9000", "32,768 prompt + 512 output tokens, TPOT ≤ 50 ms"]
    assert opened.text("#answer .verdict").strip() == "streaming_llm"
    assert "retains 0.7 of the plain cache's quality" in opened.text("#answer .why")
    names = opened.page.eval_on_selector_all("#top tbody tr[data-m] .name", "all => all.map((b) => b.textContent.trim())")
    assert names[:5] == ["streaming_llm", "turboquant", "quest", "fp8_kv", "full"] and names[5:] == ["pyramidkv", "kivi"]
    assert opened.page.is_visible("#answer .verdict") and opened.page.evaluate("document.querySelector('#answer').getBoundingClientRect().top < 300")


def test_every_chart_is_drawn_when_it_comes_into_view(opened: Opened) -> None:
    ids = opened.page.eval_on_selector_all(".chart", "all => all.map((c) => c.id)")
    assert ids == ["tradeoff", "quality", "by-context", "by-batch", "parts", "parts-context", "parts-batch", "memory", "pays", "pays-map", "ledger", "measured"]
    for chart in ids:
        opened.see(f"#{chart}")
        opened.page.wait_for_selector(f"#{chart} .main-svg")
        assert opened.text(f"#{chart} h3"), chart
        assert opened.text(f"#{chart} .sentence"), chart
        assert opened.page.get_attribute(f"#{chart} .plot", "aria-label"), chart
        assert opened.page.count(f"#{chart} details table tr") > 2, chart
    assert "Bits of one original value at 32K tokens" in opened.text("#ledger h3")


def test_at_most_eight_series_are_lit_and_unsure_ones_are_hatched(opened: Opened) -> None:
    assert opened.page.count("#legend .series") <= 8
    opened.see("#tradeoff")
    hatched = opened.page.eval_on_selector_all("#tradeoff .point", "all => all.filter((p) => p.style.fill.includes('hatch')).length")
    assert hatched >= 3  # turboquant and kivi were never timed, pyramidkv's quality is a proxy
    solid = opened.page.eval_on_selector_all("#tradeoff .point", "all => all.filter((p) => !p.style.fill.includes('hatch')).length")
    assert solid >= 3


def test_hovering_shows_figures_interval_and_provenance_and_a_click_copies_the_command(opened: Opened) -> None:
    at = opened.point("tradeoff", "turboquant")
    opened.page.mouse.move(at["x"], at["y"])
    opened.page.mouse.move(at["x"] + 1, at["y"])
    opened.page.wait_for_selector("#card:not([hidden])")
    card = opened.text("#card")
    for words in ("turboquant", "requests/s", "80 %", "0.144", "0.0288 – 0.259", "uncalibrated format", "unknown", "memory capacity", "computed by kvatlas 0.0-test"):
        assert words in card, words
    opened.page.mouse.click(at["x"] + 1, at["y"])
    opened.page.wait_for_selector("#chosen:not([hidden])")
    assert opened.copied() == "kvatlas simulate --model small-8b --gpu rtx-9000 --method turboquant --prompt 32768 --output 512 --slo tpot_ms=50"


def test_filters_change_the_answer_and_live_in_the_address(opened: Opened, browser: Any, page: Path) -> None:
    opened.page.click('#filters .chip[data-value="quantization"]')
    opened.page.wait_for_function("location.hash.includes('family=quantization')")
    assert opened.text("#answer .verdict").strip() == "turboquant"
    opened.page.select_option("#pick-gpu", label="h200:hbm_bandwidth=9000000000000B/s")
    opened.page.wait_for_function("location.hash.includes('gpu=h200')")
    opened.page.select_option("#pick-quality", label="at least 0.99")
    opened.page.wait_for_function("location.hash.includes('quality=0.99')")
    assert opened.text("#answer .verdict").strip() == "fp8_kv"
    address = opened.page.evaluate("location.hash")
    again = Opened(browser, page, address)
    assert again.page.evaluate("document.querySelector('#question').textContent") == opened.page.evaluate("document.querySelector('#question').textContent")
    assert again.text("#top") == opened.text("#top")
    assert again.page.get_attribute('#filters .chip[data-value="quantization"]', "aria-pressed") == "true"
    assert again.page.get_attribute('#filters .chip[data-value="eviction"]', "aria-pressed") == "false"
    assert again.complaints == []
    again.context.close()
    opened.page.click("#clear")
    opened.page.wait_for_function("!location.hash.includes('family')")
    assert opened.page.input_value("#pick-gpu") == "1"


def test_evidence_and_deployability_filter_rows(opened: Opened) -> None:
    opened.page.click('#filters .chip[data-value="fitted"]')
    names = opened.page.eval_on_selector_all("#top tbody tr[data-m] .name", "all => all.map((b) => b.textContent.trim())")
    assert names == ["fp8_kv", "full"]  # slow_one is fitted too, and does not pay
    opened.page.click("#clear")
    opened.page.click('#filters .chip[data-group="deployable"]')
    opened.page.wait_for_function("location.hash.includes('deployable=1')")
    assert "kivi" not in opened.text("#top")


def test_the_legend_lights_and_greys_series(opened: Opened) -> None:
    before = opened.page.count("#legend .series")
    opened.page.click('#legend .series:has-text("quest")')
    opened.page.wait_for_function(f"document.querySelectorAll('#legend .series').length === {before - 1}")
    assert "lit=" in opened.page.evaluate("new Promise((r) => setTimeout(() => r(location.hash), 200))")
    opened.page.fill("#add", "snapkv")
    opened.page.keyboard.press("Enter")
    opened.page.wait_for_function("document.querySelector('#legend').textContent.includes('snapkv')")
    for recipe in ("slow_one", "kivi:bits=4", "quest"):
        opened.page.fill("#add", recipe)
        opened.page.keyboard.press("Enter")
    assert opened.page.count("#legend .series") <= 8
    opened.page.fill("#add", "nothing_like_it")
    opened.page.keyboard.press("Enter")
    opened.page.wait_for_function("document.querySelector('#live').textContent === 'The store has no nothing_like_it'")


def test_why_not_tells_the_reason_of_every_kind(opened: Opened) -> None:
    def why(text: str) -> str:
        opened.page.fill("#why-input", text)
        opened.page.wait_for_timeout(50)
        return opened.text("#why-answer")
    assert "a prompt holds 11.88 GiB more before it is compressed" in why("snapkv")
    assert "it does not pay: 0.5× of the plain cache" in why("slow_one")
    assert "it forgets tokens, so it is not advised before its quality was judged" in why("pyramidkv")
    assert "no engine offers it today" in why("kivi:bits=4") and "it is number" in why("kivi:bits=4")
    assert "its sweep did not name it" in why("gear<b>")
    opened.page.select_option("#pick-model", label="Wide 7B")
    assert "it cannot be: kivi: group_size is 48, must divide head_dim (128)" in why("kivi")
    assert "the sweep did not name" not in why("kivi")


def test_two_pinned_configurations_are_compared(opened: Opened) -> None:
    opened.page.click('#top tr:has-text("turboquant") button[data-do="a"]')
    opened.page.click('#top tr:has-text("fp8_kv") button[data-do="b"]')
    table = opened.text("#compare-table")
    for words in ("turboquant", "fp8_kv", "bits of one value", "3.2", "B over A", "2.5×", "one decode step, 32K tokens, batch 1", "requests/s", "risk", "keeps every token", "unknown: nobody judged it", "0.9995, published on small-8b",
                  "kvatlas simulate --model small-8b --gpu rtx-9000 --method fp8_kv"):
        assert words in table, words
    opened.page.wait_for_function("location.hash.includes('a=turboquant') && location.hash.includes('b=fp8_kv')")
    opened.page.click('[data-unpin="a"]')
    assert "turboquant" not in opened.text("#compare-table")
    # What cannot be served shows its reason and no figures.
    opened.page.evaluate("location.hash = '#model=small-8b&gpu=rtx-9000&ask=w:aabbccdd&a=snapkv@small-8b@rtx-9000&b=kivi@wide-7b@rtx-9000'")
    opened.page.wait_for_function("document.querySelector('#compare-table').textContent.includes('snapkv')")
    table = opened.text("#compare-table")
    assert "a prompt holds 11.88 GiB more" in table and "group_size is 48, must divide head_dim (128)" in table and "false" not in table and "NaN" not in table


def test_tables_sort_by_their_heads(opened: Opened) -> None:
    opened.see("#rows")
    opened.page.wait_for_selector("#rows-table")
    first = lambda: opened.page.inner_text("#rows-table tbody tr:first-child th").strip()
    assert first() == "pyramidkv"
    opened.page.click('#rows-table [data-by="9"]')  # size factor, largest first
    assert first() == "pyramidkv" and opened.page.get_attribute("#rows-table th:nth-child(10)", "aria-sort") == "descending"
    opened.page.click('#rows-table [data-by="9"]')
    assert first() == "quest" and opened.page.get_attribute("#rows-table th:nth-child(10)", "aria-sort") == "ascending"
    opened.page.click('#claims-table [data-sort="2"]')
    assert "7 x" in opened.page.inner_text("#claims-table tbody tr:first-child")
    opened.page.click('[data-verdict="not_reproduced"]')
    assert opened.page.count("#claims-table tbody tr") == 1
    assert "context 32768 <batch 1>" in opened.text("#claims-table")  # text of a store is never markup


def test_a_chart_is_exported(opened: Opened) -> None:
    opened.see("#tradeoff")
    opened.page.hover("#tradeoff header")
    for button, name, start in (("png", "kvatlas-tradeoff.png", b"\x89PNG"), ("svg", "kvatlas-tradeoff.svg", b"<svg"), ("csv", "kvatlas-tradeoff.csv", b"rank,method")):
        with opened.page.expect_download() as saved:
            opened.page.click(f"#tradeoff [data-{button}]")
        content = saved.path.read_bytes()
        assert saved.suggested_filename == name and content.startswith(start) and len(content) > 400
        if button == "svg":
            assert b"url(&quot;#hatch-" in content or b"url(#hatch-" in content
            assert b"<pattern" in content


def test_the_keyboard_reaches_every_point_and_copies_it(opened: Opened) -> None:
    opened.see("#tradeoff .plot")
    opened.page.focus("#tradeoff .plot")
    opened.page.keyboard.press("Home")
    opened.page.wait_for_selector("#card:not([hidden])")
    assert "1 of" in opened.page.inner_text("#live") and "requests per second" in opened.page.inner_text("#live")
    opened.page.keyboard.press("ArrowRight")
    assert "2 of" in opened.page.inner_text("#live")
    opened.page.keyboard.press("Enter")
    assert opened.copied().startswith("kvatlas simulate --model small-8b")
    opened.page.keyboard.press("Escape")
    assert opened.page.is_hidden("#card") and opened.page.is_hidden("#chosen")
    opened.page.evaluate("document.activeElement.blur()")
    opened.page.keyboard.press("/")
    assert opened.page.evaluate("document.activeElement.id") == "why-input"


def test_every_control_has_a_name_and_every_chart_a_table(opened: Opened) -> None:
    nameless = opened.page.evaluate("""[...document.querySelectorAll('button, select, input')].filter((e) => !(e.getAttribute('aria-label') || e.title || e.textContent.trim() || e.placeholder || (e.labels && e.labels.length))).map((e) => e.outerHTML)""")
    assert nameless == []
    ids = opened.page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id).filter((id) => !/^(clip|topdefs|legend)/.test(id))")
    assert len(ids) == len(set(ids))


def test_light_and_dark_follow_the_system_and_the_switch(browser: Any, page: Path) -> None:
    dark = Opened(browser, page, color_scheme="dark")
    ground = lambda o: o.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground(dark) == "rgb(23, 23, 22)"
    dark.page.click("#theme")
    dark.page.wait_for_function("location.hash.includes('theme=light')")
    assert ground(dark) == "rgb(252, 252, 250)" and dark.complaints == []
    dark.context.close()


def test_no_webgl_is_no_obstacle(browser: Any, page: Path) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.add_init_script("HTMLCanvasElement.prototype.getContext = new Proxy(HTMLCanvasElement.prototype.getContext, { apply: (f, self, args) => (/webgl/.test(args[0]) ? null : Reflect.apply(f, self, args)) })")
    tab = context.new_page()
    tab.goto(page.as_uri() + "#scope=all")
    tab.wait_for_function("window.opened")
    assert tab.count("#tradeoff .scatterlayer .point") > 50 and tab.complaints == []
    context.close()


def test_a_broken_address_opens_the_first_question(browser: Any, page: Path) -> None:
    o = Opened(browser, page, "#model=none&gpu=<b>&ask=w:zz&family=&lit=x~y&a=q@w&batch=-3&context=7&quality=abc&scope=moon")
    assert o.text("#answer .verdict").strip() and o.complaints == []
    o.context.close()


def test_a_store_whose_quality_is_of_another_model_gets_a_panel_of_its_own(browser: Any, tmp_path: Path) -> None:
    from atlas import make_store
    from report import report
    report(make_store(tmp_path / "a.sqlite", quality_model="tiny-1b"), tmp_path / "a.html")
    o = Opened(browser, tmp_path / "a.html")
    o.see("#quality")
    o.page.wait_for_selector("#quality .main-svg")
    assert o.text("#quality h3") == "Retained quality, judged on tiny-1b"
    assert "Not joined with the speed of Small 8B" in o.text("#quality .sentence") and o.complaints == []
    o.context.close()


def test_what_an_older_store_lacks_is_a_sentence(browser: Any, tmp_path: Path) -> None:
    from atlas import make_store
    from report import report
    report(make_store(tmp_path / "old.sqlite", version=1, evidence=False, workloads=False), tmp_path / "old.html")
    o = Opened(browser, tmp_path / "old.html")
    for chart, words in (("quality", "holds no quality figure"), ("ledger", "holds no byte ledgers"), ("measured", "holds no measurements")):
        o.see(f"#{chart}")
        o.page.wait_for_function(f"document.querySelector('#{chart} .sentence').textContent.includes('{words}')")
    assert "The store holds no claims" in o.text("#claims-box") and "tokens/s" in o.text("#top")
    assert o.complaints == []
    o.context.close()


def drawn(browser: Any, tmp_path: Path, address: str = "", change: str = "", **options: Any) -> Opened:
    """The page of a store made for one test; `change`: SQL on it first."""
    import sqlite3

    from atlas import make_store
    from report import report
    from report.page import plotly_file
    try:
        plotly_file()
    except Exception as error:
        pytest.skip(str(error))
    store = make_store(tmp_path / "a.sqlite", **options)
    db = sqlite3.connect(store)
    db.executescript("PRAGMA foreign_keys = OFF;" + change)
    db.close()
    report(store, tmp_path / "a.html")
    return Opened(browser, tmp_path / "a.html", address)


def every_part(o: Opened) -> None:
    for y in range(0, o.page.evaluate("document.body.scrollHeight"), 600):
        o.page.evaluate("y => window.scrollTo(0, y)", y)
        o.page.wait_for_timeout(100)


def test_text_of_a_store_is_never_markup(browser: Any, tmp_path: Path) -> None:
    from atlas import POISON, make_store, poison
    from report import report
    report(poison(make_store(tmp_path / "a.sqlite")), tmp_path / "a.html", title=POISON)
    o = Opened(browser, tmp_path / "a.html")
    every_part(o)
    o.page.click('#top tr[data-m] button[data-do="a"]')
    o.page.fill("#why-input", "<img")
    o.page.focus("#tradeoff .plot")
    o.page.keyboard.press("Home")
    assert o.page.title() == POISON and POISON in o.text("#answer") and POISON in o.text("#compare-table") and "<img" in o.text("#why-answer") and POISON in o.text("#claims-box")
    assert o.page.evaluate("[window.pwned === undefined, document.querySelectorAll('img').length]") == [True, 0]
    address = o.page.evaluate("new Promise((r) => setTimeout(() => r(location.hash), 200))")
    again = Opened(browser, tmp_path / "a.html", address)
    assert again.text("#compare-table") == o.text("#compare-table") and again.page.evaluate("window.pwned === undefined")
    assert o.complaints == [] and again.complaints == [] and o.requests == []
    again.context.close()
    o.context.close()


def test_quality_of_another_model_is_said_wherever_it_stands(browser: Any, tmp_path: Path) -> None:
    o = drawn(browser, tmp_path, quality_model="tiny-1b")
    assert "measured on tiny-1b, another model" in o.text("#answer")
    assert "judged on tiny-1b" in o.text("#top")
    # The store's interval is the figure's; it is drawn only where that figure is the one on the axis.
    o.see("#quality")
    o.page.wait_for_selector("#quality .main-svg")
    whiskers = o.page.evaluate("() => Object.fromEntries(document.querySelector('#quality .plot').data.flatMap((t) => t.y.map((name, i) => [name, t.error_x.array[i] > 0])))")
    assert whiskers == {"kivi": True, "kivi:bits=4": False, "snapkv": False, "streaming_llm": False, "pyramidkv": False, "fp8_kv": False}
    assert "Whiskers: 95 % interval, where the store has it of the drawn figure" in o.text("#quality .sentence")
    assert o.complaints == []
    o.context.close()


def test_quality_of_the_model_itself_goes_first_on_the_page(browser: Any, tmp_path: Path) -> None:
    row = "INSERT INTO quality(model, recipe, quality_model, metric, value, retained, context, protocol, n, grade, source, provenance) VALUES('small-8b', 'streaming_llm', 'tiny-1b', 'x', 0.1, 0.1, 1, 'a', 1, 'M', 's', 'measured');"
    o = drawn(browser, tmp_path, change=row + "UPDATE quality SET grade = 'X' WHERE recipe = 'streaming_llm' AND quality_model = 'small-8b'")
    assert "It retains 0.7 of the plain cache's quality (proxy on small-8b)" in o.text("#answer")
    assert o.complaints == []
    o.context.close()


def test_runs_of_whole_models_have_a_table_and_bad_coverage_is_said(opened: Opened) -> None:
    opened.see("#validation")
    text = opened.text("#validation")
    assert "Runs of whole models" in text and "it held time to the first token 23 % of the measured values. The others: time per output token 82 %." in text
    assert opened.page.count("#runs-table tbody tr") == 3 and opened.page.count("#runs-table .off") == 1
    assert "vllm-0.9" in opened.text("#runs-table") and "The 80 % interval holds: decode attention (cold) 80 %." in text
    assert "of measured runs of whole models they hold 23 %" in opened.text("#about-box")


def test_sentences_of_the_answer_say_what_is_so(browser: Any, tmp_path: Path) -> None:
    # No plain cache in the sweep, one offered method that forgets tokens and that nobody judged.
    o = drawn(browser, tmp_path, "#family=eviction", change="DELETE FROM quality; DELETE FROM workload_predictions WHERE configuration IN (SELECT c.id FROM configurations c JOIN methods m ON m.id = c.method WHERE m.recipe = 'full')")
    text = o.text("#answer")
    assert text.startswith("streaming_llm") and "it forgets tokens and nobody has judged its quality here" in text and "Research only" not in text
    assert "The file has no row of the plain cache for this question." in text and "does not fit" not in text
    o.page.evaluate("location.hash = '#family=none'")
    o.page.wait_for_function("document.querySelector('#answer').textContent.includes('Nothing passes the filters')")
    assert "Nothing in this file" not in o.text("#answer") and o.complaints == []
    o.context.close()


def test_a_decoding_question_names_its_ratios(opened: Opened) -> None:
    opened.page.select_option("#pick-ask", "c32768")
    assert "same batch" in opened.text("#top thead") and "decode only" not in opened.text("#top thead")
    assert "decode only" not in opened.text("#answer")
    assert opened.page.get_attribute("#top tr.part th", "colspan") == str(opened.page.count("#top thead th"))


@pytest.mark.large
def test_100000_points_open_and_answer_the_pointer(browser: Any, large_page: Path) -> None:
    o = Opened(browser, large_page)
    opening = o.page.cpu_seconds()
    print(f"100,000 decode steps: {large_page.stat().st_size / 1e6:.2f} MB; open after {o.seconds:.2f} s, {opening:.2f} s of them work of the page")
    o.see("#tradeoff")
    before, started = o.page.cpu_seconds(), time.monotonic()
    o.page.click('[data-scope="all"]')
    o.page.wait_for_function("/^\\d{3},\\d{3} decode steps of every model and GPU$/.test(document.querySelector('#tradeoff h3').textContent)")
    drawing = o.page.cpu_seconds() - before
    print(f"all of them drawn after {time.monotonic() - started:.2f} s, {drawing:.2f} s of them work of the page")
    assert o.page.count("#tradeoff .gl-canvas") > 0
    # The pointer over all of them; a frame has 16 ms.
    box = o.page.bounding_box("#tradeoff .plot")
    before = o.page.cpu_seconds()
    for i in range(40):
        o.page.mouse.move(box["x"] + 100 + 20 * i, box["y"] + 120 + 5 * i)
    moving = (o.page.cpu_seconds() - before) / 40
    print(f"a movement of the pointer over all points: {1e3 * moving:.1f} ms of work")
    at = o.page.evaluate("""() => { const plot = document.querySelector('#tradeoff .plot'), r = plot.getBoundingClientRect(), l = plot._fullLayout, t = plot.data[0], k = t.x.length >> 1;
      return [r.left + l.xaxis._offset + l.xaxis.l2p(Math.log10(t.x[k])), r.top + l.yaxis._offset + l.yaxis.l2p(Math.log10(t.y[k]))]; }""")
    o.page.mouse.move(at[0] - 2, at[1])
    o.page.mouse.move(at[0], at[1])
    o.page.wait_for_selector("#card:not([hidden])")
    assert "tokens/s" in o.text("#card") and "batch" in o.text("#card")
    assert o.complaints == []
    o.context.close()


@pytest.mark.parametrize("source, word, said", [
    ("config file /models/a b/config.json", "'/models/a b/config.json'", "Command line copied: kvatlas"),
    ("measured by its makers", "path/to/small-8b/config.json", "Command line copied (the store does not say where the config.json of small-8b lies: put that in): kvatlas")])
def test_the_command_of_an_imported_model_names_its_file_or_says_that_it_cannot(browser: Any, tmp_path: Path, source: str, word: str, said: str) -> None:
    o = drawn(browser, tmp_path, change=f"UPDATE models SET identity = 'small-8b#0011', source = '{source}' WHERE id = 1")
    o.page.click('#answer button[data-do="copy"]')
    o.page.wait_for_function("document.querySelector('#live').textContent.startsWith('Command line copied')")
    assert o.copied().startswith(f"kvatlas simulate --model {word} --gpu ")
    assert o.page.inner_text("#live").startswith(said)
    o.context.close()
