"""Reports: text stays text, and in a browser they fit, light and dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tools.browser import NAMES, binary

from pullback.viz.report import report_page
from tests.viz import browser

needs_browser = pytest.mark.skipif(binary() is None, reason=f"no browser: none of {', '.join(NAMES)} is on the path")


def report() -> dict[str, Any]:
    series = [{"name": "{{body}}", "x": [0.01, 0.1, 1], "y": [0, 0.5, None]}, {"name": "bar", "x": [1], "y": [1]}]
    parts = [
        {"text": "{{style}}"},
        {"heading": "<i>"},
        {"tokens": [("<i>", 0.5), ("word " * 9, -0.1), ("none", -0.001)]},
        {"columns": ["a", "b"], "table": [[1.23456, {"value": "holds", "good": True}], [None, "x" * 300]]},
        {"charts": [{"title": "t", "x": "x", "y": "y", "series": series, "log": True}] * 3},
    ]
    return {"title": "<b>", "lead": "</script>", "note": "&", "sections": [{"title": "s", "parts": parts}]}


def test_text_of_a_page_is_text() -> None:
    page = report_page(report())
    assert "<h1>&lt;b&gt;</h1>" in page
    assert "<title>&lt;b&gt;</title>" in page
    assert "&lt;i&gt;" in page
    assert "1.23" in page
    assert "<p>{{style}}</p>" in page
    assert ">0%<" in page
    assert "-0%" not in page


def test_a_report_asks_for_nothing_and_runs_nothing() -> None:
    page = report_page(report())
    assert "default-src 'none'" in page
    assert not any(word in page for word in ("script-src", "<script", "http://", "https://", "src="))


@needs_browser
@pytest.mark.parametrize("size", [(1280, 800), (400, 700)])
def test_it_fits_light_and_dark(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "report.html"
    path.write_text(report_page(report()), encoding="utf-8")
    script = """
    const style = getComputedStyle(document.body);
    const lines = $$("figure > svg polyline").map((line) => getComputedStyle(line).stroke);
    return { fits: document.documentElement.scrollWidth <= innerWidth, paper: style.backgroundColor, ink: style.color,
      lines: new Set(lines).size, h1: $("h1").textContent };
    """
    seen = []
    with browser.tab(size) as page:
        for dark in (False, True):
            page.dark(dark)
            page.open(path.as_uri())
            seen.append(page.run(script))
    assert all(one["fits"] and one["lines"] == 2 and one["h1"] == "<b>" for one in seen)
    assert seen[0]["paper"] != seen[1]["paper"]
    assert seen[0]["ink"] != seen[1]["ink"]
