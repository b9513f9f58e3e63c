"""The panel's list of what attention carries: entries of patterns, and the pairs that scores are made of."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools.browser import NAMES, binary

from pullback.viz import graph_page
from tests.viz import browser, payloads

pytestmark = pytest.mark.skipif(binary() is None, reason=f"no browser: none of {', '.join(NAMES)} is on the path")

ENTRY = {
    **{"layer": 1, "head": 3, "query_pos": 2, "key_pos": 1, "against": 0, "carried": 4.25, "pattern": 0.875},
    **{"score": 2.5, "check": 0.0, "edges": []},
    "pairs": [
        {"query": "0_7_2", "key": "E_101_1", "value": 3.5},
        {"query": "own_bias_2", "key": "<b>1_head_0_1", "value": -1.0},
    ],
}
SCRIPT = """
const section = $("#attention");
if (!section) return null;
const row = (tr) => ({ text: tr.innerText, sign: tr.className, buttons: tr.querySelectorAll("button").length });
const details = section.querySelector("details");
details.open = true;
const found = { heading: section.querySelector("h3").innerText, summary: details.querySelector("summary").innerText,
  rows: [...details.querySelectorAll("tbody tr")].map(row), score: details.querySelector("th.number").title };
section.querySelector("button.go").click();
return { ...found, selected: $("#selected-node")?.innerText ?? "" };
"""


def page(**metadata: object) -> str:
    words = ["one", "two", "three"]
    feature = payloads.node("0_7_2", "feature", "0", 2, clerp="seven", influence=0.1)
    links = [{"source": "E_102_2", "target": "0_7_2", "weight": 1.0}]
    graph = payloads.payload([*payloads.leaves(words), feature], links, words)
    return graph_page(graph | {"metadata": graph["metadata"] | metadata})


def test_entries_and_their_pairs(tmp_path: Path) -> None:
    got = browser.drive(page(attention=[ENTRY]), SCRIPT, tmp_path)
    assert got["heading"].split() == ["Attention", "that", "carries", "it", "1"]
    assert "L1 head 3: three (2) looks at two (1)" in got["summary"]
    assert "88%" in got["summary"]
    assert "carries +4.25" in got["summary"]
    first, second = got["rows"]
    assert (first["sign"], first["buttons"]) == ("positive", 2)
    assert all(part in first["text"] for part in ("seven", "two", "+3.50"))
    assert (second["sign"], second["buttons"]) == ("negative", 0), "parts that are no nodes of the graph are names"
    assert "<b>1_head_0_1" in second["text"]
    assert got["score"].endswith("2.50 above that of one (0)")
    assert "seven" in got["selected"], "a part that is a node can be gone to"


def test_other_graphs_have_none(tmp_path: Path) -> None:
    assert browser.drive(page(), SCRIPT, tmp_path) is None
