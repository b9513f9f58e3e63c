"""Features and errors of attention outputs on the page: half a layer below those of the MLP, and named so."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools.browser import NAMES, binary

from pullback.viz import graph_page
from tests.viz import browser, payloads

pytestmark = pytest.mark.skipif(binary() is None, reason=f"no browser: none of {', '.join(NAMES)} is on the path")

SCRIPT = """
const heights = ["1_7_2", "A1_17_2", "0_7_2"].map((id) => node(id).getBoundingClientRect().top);
const rows = [...document.querySelectorAll("#axis-inner span")].map((span) => span.textContent);
const spoken = ["A1_17_2", "A1_-1_2"].map((id) => node(id).getAttribute("aria-label"));
point("click", "A1_17_2");
const hits = ["A1:17", "1:17"].map((q) => { setTo("#search", q); return $$("#nodes .hit").map((e) => e.dataset.id); });
return { heights, rows, spoken, hits, selected: $("#selected-node")?.innerText ?? "", panel: $("#panel").innerText };
"""


@pytest.mark.parametrize("kinds", [("attention_feature", "attention_error"), (None, None)])
def test_they_have_rows_and_names_of_their_own(tmp_path: Path, kinds: tuple[str | None, str | None]) -> None:
    words = ["one", "two", "three"]
    nodes = [
        payloads.node("0_7_2", "feature", "0", 2, influence=0.1),
        payloads.node("1_7_2", "feature", "1", 2, influence=0.1),
        payloads.node("A1_17_2", "attention_feature", "1", 2, influence=0.1, feature_type="lorsa"),
        payloads.node("A1_-1_2", "attention_error", "1", 2, influence=0.1, feature_type="lorsa error"),
    ]
    for node, kind in zip(nodes[2:], kinds, strict=True):
        node["kind"] = kind or node["kind"]
        if kind is None:  # as other writers have it
            del node["kind"]
    links = [
        {"source": "0_7_2", "target": "A1_17_2", "weight": 1.0},
        {"source": "A1_17_2", "target": "1_7_2", "weight": 1.0},
        {"source": "A1_-1_2", "target": "1_7_2", "weight": 0.5},
    ]
    got = browser.drive(graph_page(payloads.payload([*payloads.leaves(words), *nodes], links, words)), SCRIPT, tmp_path)
    assert got["heights"] == sorted(got["heights"]), "MLP 1 above attention 1 above MLP 0"
    assert {"A1", "L0", "L1"} <= set(got["rows"])
    assert got["spoken"][0].startswith("Feature of attention 17 A1·17, layer 1, position 2")
    assert got["spoken"][1].startswith("Error of the autoencoder of attention, layer 1")
    assert got["hits"] == [["A1_17_2"], []], "a search in layer 1 does not mean its attention"
    assert "A1·17" in got["selected"]
    assert "Feature of attention" in got["panel"]
    assert "1, attention" in got["panel"]
