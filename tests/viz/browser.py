"""Drives a page from inside: a script put at its end sends events and leaves a result in the document."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tools.browser import FLAGS, binary

WATCH = """<script>
const problems = [];
addEventListener("error", (event) => problems.push(event.message));
addEventListener("securitypolicyviolation", (event) => problems.push(event.violatedDirective));
</script>"""

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
const shownIds = () => $$("#nodes .node").map((element) => element.dataset.id);
"""


def instrumented(page: str, script: str) -> str:
    """The page with `script` at its end; the script's return value goes into a <pre>, and to a parent window."""
    driver = f"""<script>(async () => {{ {HELPERS}
      const report = (result) => {{
        const text = JSON.stringify({{ result, problems }});
        const place = document.createElement("pre");
        place.id = "test-result";
        place.textContent = text;
        document.body.append(place);
        if (parent !== window) parent.postMessage(text, "*");
      }};
      try {{ report(await (async () => {{ {script} }})()); }}
      catch (error) {{ problems.push(String(error.stack)); report(null); }}
    }})()</script>"""
    return page.replace("<head>", f"<head>{WATCH}", 1).replace("</body>", f"{driver}</body>")


def drive(
    page: str, script: str, folder: Path, *, fragment: str = "", size: str = "1280,800", real_time: bool = False
) -> Any:
    """Open the page, run `script` in it, and return what it returned; any error or console message fails."""
    return open_file(instrumented(page, script), folder, fragment=fragment, size=size, real_time=real_time)


def drive_frame(frame: str, script: str, folder: Path) -> Any:
    """The same for a page inside an iframe's srcdoc, which hands its result to the window around it."""
    start, end = frame.index('srcdoc="') + len('srcdoc="'), frame.index('" title=')
    inner = html.escape(instrumented(html.unescape(frame[start:end]), script))
    listener = """<script>addEventListener("message", (event) => {
      const place = document.createElement("pre"); place.id = "test-result"; place.textContent = event.data;
      document.body.append(place); });</script>"""
    notebook = f"<!doctype html><meta charset=utf-8><body>{listener}{frame[:start]}{inner}{frame[end:]}</body>"
    return open_file(notebook, folder)


def open_file(text: str, folder: Path, *, fragment: str = "", size: str = "1280,800", real_time: bool = False) -> Any:
    """Dump the document after it has run, and read the result out of it."""
    path = folder / "page.html"
    path.write_text(text, encoding="utf-8")
    # Under a virtual clock timers fire at once but durations mean nothing.
    clock = [] if real_time else ["--virtual-time-budget=4000"]
    profile = folder / "profile"
    command = [
        str(binary()),
        *FLAGS,
        *clock,
        f"--user-data-dir={profile}",
        f"--window-size={size}",
        "--dump-dom",
        f"{path.as_uri()}{fragment}",
    ]
    run = subprocess.run(command, capture_output=True, timeout=120, check=False)
    shutil.rmtree(profile, ignore_errors=True)
    found = re.search(r'<pre id="test-result">(.*?)</pre>', run.stdout.decode("utf-8", "replace"), re.DOTALL)
    assert found, f"the page left no result; stderr: {run.stderr.decode('utf-8', 'replace')[-2000:]}"
    answer = json.loads(html.unescape(found[1]))
    assert answer["problems"] == []
    said = [line for line in run.stderr.decode("utf-8", "replace").splitlines() if "CONSOLE" in line]
    assert said == []
    return answer["result"]
