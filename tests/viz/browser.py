"""Pages in a headless browser: one Chromium for all tests, spoken to through its debugging pipe.

`drive` opens a page in a tab of its own, runs a script there and returns what it returned. Any exception, console
message or violated content policy of the page fails the test.
"""

from __future__ import annotations

import atexit
import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from tools.browser import FLAGS, binary

HELPERS = """
const $ = (selector) => document.querySelector(selector);
const $$ = (selector) => [...document.querySelectorAll(selector)];
const node = (id) => $$("#nodes .node").find((element) => element.dataset.id === id);
const middle = (element) => {
  const box = element.getBoundingClientRect();
  return { x: box.x + box.width / 2, y: box.y + box.height / 2 };
};
const point = (type, id, more = {}) => {
  const at = middle(node(id));
  $("#scroll").dispatchEvent(new PointerEvent(type, { clientX: at.x, clientY: at.y, bubbles: true, ...more }));
};
const key = (name, target = document.activeElement) =>
  target.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
const setTo = (selector, value) => {
  $(selector).value = value;
  $(selector).dispatchEvent(new Event("input", { bubbles: true }));
};
const soon = () => new Promise((resolve) => setTimeout(resolve, 300));
const nextFrame = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
const shownIds = () => $$("#nodes .node").map((element) => element.dataset.id);
"""


class Chromium:
    """A running browser. Messages are JSON, each ended by a zero byte; file descriptors 3 and 4 are the browser's."""

    def __init__(self) -> None:
        self.profile = tempfile.mkdtemp(prefix="chromium-")
        theirs_in, ours_out = map(_high, os.pipe())
        ours_in, theirs_out = map(_high, os.pipe())
        command = [str(binary()), *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={self.profile}", "about:blank"]
        shell = ["bash", "-c", f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}', *command]
        self.process = subprocess.Popen(shell, pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL)
        os.close(theirs_in)
        os.close(theirs_out)
        self._out = os.fdopen(ours_out, "wb", buffering=0)
        self._in = ours_in
        self._rest = b""
        self._sent = 0
        self.listeners: dict[str, Callable[[str, dict[str, Any]], None]] = {}
        atexit.register(self.close)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send one command and wait for its answer; events that come in between go to their session's listener."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": params}
        message |= {"sessionId": session} if session else {}
        self._out.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._sent:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            listener = self.listeners.get(answer.get("sessionId", ""))
            if listener and "method" in answer:
                listener(answer["method"], answer["params"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            chunk = os.read(self._in, 1 << 20)
            assert chunk, "the browser has gone"
            self._rest += chunk
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def close(self) -> None:
        """End the browser and remove its profile."""
        if self.process.poll() is None:
            self.call("Browser.close")
            self.process.wait(20)
        shutil.rmtree(self.profile, ignore_errors=True)


def _high(descriptor: int) -> int:
    """The same file under a number that is neither 3 nor 4."""
    copy = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return copy


class Tab:
    """One page: real input, scripts, screenshots, and all that went wrong in `problems`."""

    def __init__(self, chromium: Chromium, size: tuple[int, int]) -> None:
        self.chromium = chromium
        # A context of its own: no page finds what another has stored.
        self.context = chromium.call("Target.createBrowserContext")["browserContextId"]
        made = chromium.call("Target.createTarget", url="about:blank", browserContextId=self.context)
        attached = chromium.call("Target.attachToTarget", targetId=made["targetId"], flatten=True)
        self.session = attached["sessionId"]
        self.problems: list[str] = []
        self.contexts: dict[int, str] = {}
        self.loaded = False
        chromium.listeners[self.session] = self._hear
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=False
        )

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the debugging protocol to this page."""
        return self.chromium.call(method, self.session, **params)

    def _hear(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled":
            self.problems.append(f"console.{params['type']}: {params['args']}")
        elif method == "Log.entryAdded":
            self.problems.append(f"{params['entry']['source']}: {params['entry']['text']}")
        elif method == "Runtime.executionContextCreated":
            self.contexts[params["context"]["id"]] = params["context"]["auxData"]["frameId"]
        elif method == "Runtime.executionContextDestroyed":
            self.contexts.pop(params["executionContextId"], None)
        elif method == "Page.loadEventFired":
            self.loaded = True

    def open(self, url: str) -> None:
        """Load a page and wait until it has run."""
        self.loaded = False
        # Only another document is loaded; another fragment of the same is there at once.
        until = time.monotonic() + 60
        if "loaderId" in self.call("Page.navigate", url=url):
            while not self.loaded:
                assert time.monotonic() < until, f"{url} does not load"
                self.call("Runtime.evaluate", expression="1")

    def run(self, script: str, *, in_frame: bool = False) -> Any:
        """The value that `script`, the body of an asynchronous function, returns in the page or in its first frame."""
        where = {}
        if in_frame:
            top = self.call("Page.getFrameTree")["frameTree"]["frame"]["id"]
            where["contextId"] = next(c for c, frame in self.contexts.items() if frame != top)
        answer = self.call(
            "Runtime.evaluate",
            expression=f"(async () => {{ {HELPERS} {script} }})()",
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
            **where,
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def dark(self, on: bool = True) -> None:
        """What the system says it prefers."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """A real pointer event: mousePressed, mouseReleased, mouseMoved or mouseWheel."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def press(self, name: str, **more: Any) -> None:
        """A real key, down and up."""
        text = {"text": name} if len(name) == 1 else {"text": "\r"} if name == "Enter" else {}
        codes = {"Enter": 13, "Tab": 9, "Escape": 27}
        extra = {"windowsVirtualKeyCode": codes[name]} if name in codes else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=name, **text, **extra, **more)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=name, **extra, **more)

    def downloads(self, folder: Path, name: str) -> bytes:
        """A file that the page has saved into `folder`, which `save_into` named; waits until it is whole."""
        path = folder / name
        for _ in range(300):
            if path.is_file() and not list(folder.glob("*.crdownload")):
                return path.read_bytes()
            self.run("await soon();")
        raise AssertionError(f"nothing was saved as {name}, but {[found.name for found in folder.iterdir()]}")

    def save_into(self, folder: Path) -> None:
        """Where files go that the page saves."""
        self.chromium.call(
            "Browser.setDownloadBehavior",
            behavior="allow",
            downloadPath=str(folder),
            browserContextId=self.context,
        )

    def screenshot(self, path: Path) -> None:
        """The visible part as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        """Close the page and forget what it stored."""
        self.chromium.call("Target.disposeBrowserContext", browserContextId=self.context)
        del self.chromium.listeners[self.session]


@cache
def chromium() -> Chromium:
    """The browser of this process, started when first needed."""
    return Chromium()


@contextmanager
def tab(size: tuple[int, int] = (1280, 800)) -> Iterator[Tab]:
    """A page that must not complain about anything while it is used."""
    page = Tab(chromium(), size)
    try:
        yield page
        page.run("")  # hears what has been said until now
        assert not page.problems, page.problems
    finally:
        page.close()


def drive(
    page: str,
    script: str,
    folder: Path,
    *,
    fragment: str = "",
    size: tuple[int, int] = (1280, 800),
    frame: bool = False,
) -> Any:
    """Open the text of a page, run `script` in it (or in the frame it holds), and return what it returned."""
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    with tab(size) as opened:
        opened.open(f"{path.as_uri()}{fragment}")
        return opened.run(script, in_frame=frame)
