"""Headless Chromium over its debugging pipe, with what the tests of the page need of a driver: nothing but Python and Chromium is required.

Input goes through the browser as a person's would: moves, presses and keys, not calls of handlers. Names are those of Playwright.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, Iterator, List, Optional

WAIT = 60_000  # ms; machines that build something else beside the test are slow

# What CSS lacks: which element of `selector` has a text, as tr:has-text("kivi") button.
FIND = """(selector) => {
  const found = /^(.*?):has-text\\("(.*?)"\\)(.*)$/.exec(selector);
  if (!found) return document.querySelector(selector);
  const row = [...document.querySelectorAll(found[1])].find((e) => e.textContent.includes(found[2]));
  return row && found[3].trim() ? row.querySelector(found[3]) : row || null;
}"""
SHOWN = "(e) => !!e && e.getClientRects().length > 0 && getComputedStyle(e).visibility !== 'hidden'"
KEYS = {"Home": 36, "End": 35, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Enter": 13, "Escape": 27, "Tab": 9, " ": 32, "/": 191}
TEXTS = {"Enter": "\r", " ": " ", "/": "/"}


class Error(Exception):
    """The browser refused, or something did not happen in time."""


def executable() -> Optional[str]:
    return os.environ.get("KVATLAS_CHROMIUM") or next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome")) if p), None)


class Chromium:
    """One browser process; each context is a profile of its own, forgotten when it is closed."""

    def __init__(self, program: str) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="kvatlas-chromium", ignore_cleanup_errors=True)
        ends = [*os.pipe(), *os.pipe()]  # to the browser: its 3; from the browser: its 4
        theirs_in, self._out, self._in, theirs_out = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
        for end in ends:
            os.close(end)

        def place() -> None:
            os.dup2(theirs_in, 3)
            os.dup2(theirs_out, 4)

        self._process = subprocess.Popen(
            [program, "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--enable-unsafe-swiftshader", "--no-first-run", "--disable-extensions",
             "--disable-dev-shm-usage", "--disable-background-networking", "--hide-scrollbars", "--force-color-profile=srgb", f"--user-data-dir={self.folder.name}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False, preexec_fn=place)
        os.close(theirs_in)
        os.close(theirs_out)
        self._bytes, self._next, self._answers = b"", 0, {}  # type: ignore[var-annotated]
        self._listeners: Dict[Optional[str], Callable[[str, Dict[str, Any]], None]] = {}
        try:
            self.version = self.send("Browser.getVersion")["product"]
        except Error:
            self.close()
            raise

    def _read(self, seconds: float) -> None:
        """Takes what the browser says: answers are kept, events go to the page that they are of."""
        if not select.select([self._in], [], [], seconds)[0]:
            return
        more = os.read(self._in, 1 << 20)
        if not more:
            raise Error(f"Chromium ended with status {self._process.poll()}")
        *whole, self._bytes = (self._bytes + more).split(b"\0")
        for message in map(json.loads, whole):
            if "id" in message:
                self._answers[message["id"]] = message
            elif listener := self._listeners.get(message.get("sessionId")):
                listener(message["method"], message["params"])

    def send(self, method: str, params: Optional[Dict[str, Any]] = None, session: Optional[str] = None) -> Dict[str, Any]:
        self._next += 1
        message: Dict[str, Any] = {"id": self._next, "method": method, "params": params or {}}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data):]
        end = time.monotonic() + WAIT / 1e3
        while message["id"] not in self._answers:
            if time.monotonic() > end:
                raise Error(f"no answer to {method} in {WAIT / 1e3:.0f} s")
            self._read(1.0)
        answer = self._answers.pop(message["id"])
        if "error" in answer:
            raise Error(f"{method}: {answer['error']['message']}")
        return answer["result"]  # type: ignore[no-any-return]

    def until(self, what: str, ready: Callable[[], Any], timeout: float = WAIT) -> Any:
        """The first true value of ready(), asked again every few milliseconds."""
        end, pause = time.monotonic() + timeout / 1e3, 0.005
        while not (value := ready()):
            if time.monotonic() > end:
                raise Error(f"{what}: not so in {timeout / 1e3:.0f} s")
            self._read(pause)
            pause = min(0.1, 1.5 * pause)
        return value

    def pump(self, milliseconds: float) -> None:
        end = time.monotonic() + milliseconds / 1e3
        while (left := end - time.monotonic()) > 0:
            self._read(left)

    def new_context(self, **options: Any) -> Context:
        return Context(self, **options)

    def close(self) -> None:
        with contextlib.suppress(Error, OSError):
            self.send("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)
        self.folder.cleanup()


class Context:
    def __init__(self, browser: Chromium, viewport: Optional[Dict[str, int]] = None, color_scheme: str = "light") -> None:
        self.browser, self.viewport, self.color_scheme = browser, viewport or {"width": 1280, "height": 900}, color_scheme
        self.id = browser.send("Target.createBrowserContext")["browserContextId"]
        self.scripts: List[str] = []

    def add_init_script(self, text: str) -> None:
        self.scripts.append(text)

    def new_page(self) -> Page:
        return Page(self)

    def close(self) -> None:
        self.browser.send("Target.disposeBrowserContext", {"browserContextId": self.id})


class Page:
    """A tab. `complaints`: errors and warnings of the console, exceptions that nobody caught; `requests`: every address that it asked for."""

    def __init__(self, context: Context) -> None:
        self.context, self.browser = context, context.browser
        self.complaints: List[str] = []
        self.requests: List[str] = []
        self.mouse, self.keyboard = SimpleNamespace(move=self._move, click=self._press), SimpleNamespace(press=self._key)
        target = self.browser.send("Target.createTarget", {"url": "about:blank", "browserContextId": context.id, **context.viewport})["targetId"]
        self.session = self.browser.send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        self.browser._listeners[self.session] = self._hear
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.send("Performance.enable", timeDomain="threadTicks")
        self.send("Emulation.setDeviceMetricsOverride", **context.viewport, deviceScaleFactor=1, mobile=False)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": context.color_scheme}])
        self.send("Emulation.setFocusEmulationEnabled", enabled=True)
        for script in context.scripts:
            self.send("Page.addScriptToEvaluateOnNewDocument", source=script)

    def send(self, method: str, **params: Any) -> Dict[str, Any]:
        return self.browser.send(method, params, self.session)

    def _hear(self, method: str, params: Dict[str, Any]) -> None:
        if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning") and "GPU stall" not in params["entry"]["text"]:
            self.complaints.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    # ---- what it shows -------------------------------------------------------------------------------------------------

    def goto(self, url: str) -> None:
        failed = self.send("Page.navigate", url=url).get("errorText")
        if failed:
            raise Error(f"{url}: {failed}")
        self.wait_for_function("document.readyState === 'complete' && location.href !== 'about:blank'")

    def evaluate(self, expression: str, argument: Any = None) -> Any:
        """The value of an expression, of what it promises, or of a function's call with the argument."""
        whole = f"(() => {{ const value = ({expression}); return typeof value === 'function' ? value({json.dumps(argument)}) : value; }})()"
        answer = self.send("Runtime.evaluate", expression=whole, awaitPromise=True, returnByValue=True, userGesture=True)
        if details := answer.get("exceptionDetails"):
            raise Error(f"{expression}: {details.get('exception', {}).get('description', details['text'])}")
        return answer["result"].get("value")

    def eval_on_selector_all(self, selector: str, function: str) -> Any:
        return self.evaluate(f"() => ({function})([...document.querySelectorAll({json.dumps(selector)})])")

    def _of(self, selector: str, function: str) -> Any:
        """function(element) of the first element, once there is one."""
        return self.browser.until(selector, lambda: self.evaluate(f"() => {{ const e = ({FIND})({json.dumps(selector)}); return e && {{ is: ({function})(e) ?? null }}; }}"))["is"]

    def wait_for_function(self, expression: str, timeout: float = WAIT) -> None:
        def ready() -> Any:
            try:
                return self.evaluate(f"!!({expression})")
            except Error:  # between two documents there is nothing to ask
                return False
        self.browser.until(expression, ready, timeout)

    def wait_for_selector(self, selector: str) -> None:
        self.wait_for_function(f"({SHOWN})(({FIND})({json.dumps(selector)}))")

    def wait_for_timeout(self, milliseconds: float) -> None:
        self.browser.pump(milliseconds)

    def inner_text(self, selector: str) -> str:
        return str(self._of(selector, "(e) => e.innerText"))

    def get_attribute(self, selector: str, name: str) -> Optional[str]:
        return self._of(selector, f"(e) => e.getAttribute({json.dumps(name)})")  # type: ignore[no-any-return]

    def input_value(self, selector: str) -> str:
        return str(self._of(selector, "(e) => e.value"))

    def is_visible(self, selector: str) -> bool:
        return bool(self.evaluate(f"({SHOWN})(({FIND})({json.dumps(selector)}))"))

    def is_hidden(self, selector: str) -> bool:
        return not self.is_visible(selector)

    def count(self, selector: str) -> int:
        return int(self.evaluate(f"document.querySelectorAll({json.dumps(selector)}).length"))

    def bounding_box(self, selector: str) -> Dict[str, float]:
        return self._of(selector, "(e) => { const r = e.getBoundingClientRect(); return { x: r.left, y: r.top, width: r.width, height: r.height }; }")  # type: ignore[no-any-return]

    def title(self) -> str:
        return str(self.evaluate("document.title"))

    def cpu_seconds(self) -> float:
        """What the page's main thread has worked so far: other processes on the machine do not count."""
        return float(next(m["value"] for m in self.send("Performance.getMetrics")["metrics"] if m["name"] == "TaskDuration"))

    def screenshot(self) -> bytes:
        return base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])

    # ---- what a person does --------------------------------------------------------------------------------------------

    def _move(self, x: float, y: float) -> None:
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def _press(self, x: float, y: float) -> None:
        self._move(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def _key(self, key: str) -> None:
        words = {"key": key, "code": "Slash" if key == "/" else "Space" if key == " " else key, "windowsVirtualKeyCode": KEYS[key]}
        self.send("Input.dispatchKeyEvent", type="keyDown" if key in TEXTS else "rawKeyDown", **words, **({"text": TEXTS[key]} if key in TEXTS else {}))
        self.send("Input.dispatchKeyEvent", type="keyUp", **words)

    def _place(self, selector: str) -> Dict[str, float]:
        """The middle of an element that is shown, stands still and is covered by nothing."""
        before: List[Any] = [None]

        def still() -> Any:
            now = self.evaluate(f"""() => {{
              const e = ({FIND})({json.dumps(selector)});
              if (!({SHOWN})(e)) return null;
              e.scrollIntoViewIfNeeded();
              const r = e.getBoundingClientRect(), x = r.left + r.width / 2, y = r.top + r.height / 2, top = document.elementFromPoint(x, y);
              return top && (e.contains(top) || top.contains(e)) ? {{ x, y }} : null;
            }}""")
            before[0], was = now, before[0]
            return now if now is not None and now == was else None
        return self.browser.until(f"{selector} can be reached", still)  # type: ignore[no-any-return]

    def hover(self, selector: str) -> None:
        self._move(**self._place(selector))

    def click(self, selector: str) -> None:
        """Presses until it is the element that is hit: a chart that is drawn meanwhile may move it away."""
        def hit() -> Any:
            self.evaluate(f"""() => {{
              window.hit = null;
              document.addEventListener('click', (event) => {{ const e = ({FIND})({json.dumps(selector)}); window.hit = !!e && e.contains(event.target); }}, {{ capture: true, once: true }});
            }}""")
            self._press(**self._place(selector))
            with contextlib.suppress(Error):
                self.browser.until("a click arrives", lambda: self.evaluate("window.hit !== null"), 5e3)
            return self.evaluate("window.hit")
        self.browser.until(f"{selector} is clicked", hit)

    def focus(self, selector: str) -> None:
        self._of(selector, "(e) => e.focus()")

    def fill(self, selector: str, text: str) -> None:
        self._of(selector, "(e) => { e.focus(); e.select(); }")
        if text:
            self.send("Input.insertText", text=text)
        else:
            self._of(selector, "(e) => { e.value = ''; e.dispatchEvent(new Event('input', { bubbles: true })); }")

    def select_option(self, selector: str, value: Optional[str] = None, label: Optional[str] = None) -> None:
        done = self._of(selector, f"""(e) => {{
          const option = [...e.options].find((o) => {json.dumps(label)} === null ? o.value === {json.dumps(value)} : o.label === {json.dumps(label)});
          if (!option) return false;
          e.focus();
          e.value = option.value;
          for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind, {{ bubbles: true }}));
          return true;
        }}""")
        if not done:
            raise Error(f"{selector} has no option {label or value!r}")

    @contextlib.contextmanager
    def expect_download(self) -> Iterator[SimpleNamespace]:
        """In the block something is saved; after it the value is its `suggested_filename` and `path`."""
        saved, done = SimpleNamespace(suggested_filename=None, path=None), []

        def hear(method: str, params: Dict[str, Any]) -> None:
            if method == "Browser.downloadWillBegin":
                saved.suggested_filename, saved.path = params["suggestedFilename"], Path(self.browser.folder.name) / params["guid"]
            elif method == "Browser.downloadProgress" and params["state"] != "inProgress":
                done.append(params["state"])
        self.browser._listeners[None] = hear
        self.browser.send("Browser.setDownloadBehavior", {"behavior": "allowAndName", "browserContextId": self.context.id, "downloadPath": self.browser.folder.name, "eventsEnabled": True})
        yield saved
        self.browser.until("a download", lambda: done)
        del self.browser._listeners[None]
        if done != ["completed"]:
            raise Error(f"the download of {saved.suggested_filename} was {done[0]}")
