"""The dashboard in a browser: every part of a feature, walking through features, light and dark, small windows."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tools.browser import NAMES, binary

from pullback.viz import DASHBOARD_SCHEMA, dashboard_page, validate_dashboard
from pullback.viz.dashboard import notebook_dashboard
from tests.viz import browser

needs_browser = pytest.mark.skipif(binary() is None, reason=f"no browser: none of {', '.join(NAMES)} is on the path")

EXAMPLE = {"tokens": ["<b>one</b>", " two", "\n"], "activations": [0.0, 2.5, 0.5], "train_token_ind": 1}
FULL: dict[str, Any] = {
    "layer": 1,
    "feature": 7,
    "examples": [EXAMPLE],
    "sampled": [{"name": "1 to 2", "examples": [EXAMPLE | {"activations": [0.0, 1.5, 0.0]}]}],
    "density": 0.25,
    "histogram": {"counts": [3, 1], "edges": [0.0, 1.0, 2.0]},
    "quantiles": [0.5, 1.0],
    "top_logits": [[" up", 1.5]],
    "bottom_logits": [[" down", -1.25]],
    "deembedding": [[" read", 0.75]],
    "bottom_deembedding": [[" against", -0.5]],
    "beside": 3.5,
    "neighbours": [{"feature": 9, "phi": 0.5, "share": 0.6, "density": 0.01}],
    "heads": [{"layer": at, "head": head, "norm": 0.1 + at + head / 10} for at in range(2) for head in range(3)],
    "pullbacks": [{"layer": 0, "feature": 4, "weight": -0.3}],
    "feeds": [{"layer": 2, "feature": 5, "weight": 0.2}],
    "prompts": [{"tokens": [" my", " own"], "activations": [0.0, 4.0], "substituted": [0.0, 3.0]}],
}
CONTENT: dict[str, Any] = {
    "model": "small",
    "layer": 1,
    "source": {"kind": "corpus", "tokens": 12345},
    "blind": None,
    "features": [FULL, {"layer": 1, "feature": 9, "top_logits": [" other"]}, {"layer": 1, "feature": 11}],
}


@needs_browser
def test_every_part_is_shown(tmp_path: Path) -> None:
    script = """
    $(".further").open = true; await soon();
    const cell = $$(".map td").map((td) => td.title);
    return { text: document.body.innerText, bold: $$(".examples b b, .examples span b").length, cell,
      bars: $$(".histogram rect").length, heading: document.title, peak: $$(".peak").map((e) => e.textContent) };
    """
    got = browser.drive(dashboard_page(CONTENT), script, tmp_path)
    for part in (
        "12,345 tokens read", "Feature 7", "layer 1", "25.0% of tokens",
        "up", "+1.50", "down", "−1.25", "read", "against",
        "3.50 other features", "L1·9", "0.50", "60%", "L0·4", "−0.300", "L2·5", "+0.200", "own", "4.00",
        "3.00 with the lower layers", "<b>one</b>", "1 to 2", "1.50",
    ):  # fmt: skip
        assert part in got["text"], part
    assert (got["bold"], got["bars"], got["heading"]) == (0, 2, "small, layer 1")
    assert len(got["cell"]) == 6
    assert "L1H2: 1.30" in got["cell"]
    assert got["peak"] == [" own", " two", " two"]


@needs_browser
def test_walking_through_features(tmp_path: Path) -> None:
    script = """
    const title = () => $("#feature h2").textContent;
    const seen = [title()];
    $$("nav a")[1].click(); await soon(); seen.push(title());
    key("j", document.body); await soon(); seen.push(title());
    key("j", document.body); await soon(); seen.push(title());
    key("k", document.body); await soon(); seen.push(title(), location.hash);
    location.hash = "#0"; await soon();
    [...$$("article a")].find((a) => a.textContent === "L1·9").click(); await soon();
    return { seen, gone: title(), current: $("nav a[aria-current]").textContent };
    """
    got = browser.drive(dashboard_page(CONTENT), script, tmp_path)
    assert got["seen"] == [f"Feature {n} layer 1" for n in (7, 9, 11, 11, 9)] + ["#1"]
    assert got["gone"] == "Feature 9 layer 1"
    assert got["current"] == "9other"


@needs_browser
@pytest.mark.parametrize("size", [(1280, 800), (820, 700), (420, 700)])
def test_it_fits_and_turns_dark(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "page.html"
    path.write_text(dashboard_page(CONTENT), encoding="utf-8")
    with browser.tab(size) as tab:
        tab.open(path.as_uri())
        paper = "return getComputedStyle(document.body).backgroundColor;"
        light = tab.run(paper)
        assert tab.run("return document.documentElement.scrollWidth <= innerWidth;")
        assert tab.run("return $('#feature').scrollWidth <= $('#feature').clientWidth;")
        tab.run("$('#theme').click();")
        assert tab.run(paper) != light


@needs_browser
def test_a_blind_study_says_so(tmp_path: Path) -> None:
    steps = [{"step": "note", "what": "cities?"}, {"step": "reveal", "what": "1 note"}]
    hidden = {name: value for name, value in FULL.items() if name not in ("examples", "sampled")}
    blind = CONTENT | {"features": [hidden], "blind": {"revealed": False, "steps": steps[:1]}}
    text = browser.drive(dashboard_page(blind), "return document.body.innerText;", tmp_path)
    assert all(part in text for part in ("examples are not shown", "have not been looked at", "Note cities?"))
    assert "Most active on" not in text
    revealed = CONTENT | {"blind": {"revealed": True, "steps": steps}}
    text = browser.drive(dashboard_page(revealed), "return document.body.innerText;", tmp_path)
    assert all(part in text for part in ("blind until revealed", "Examples revealed", "Most active on"))


@needs_browser
def test_in_a_notebook(tmp_path: Path) -> None:
    page = f"<!doctype html><title>cell</title>{notebook_dashboard(CONTENT)}"
    title = browser.drive(page, "return $('#feature h2').textContent;", tmp_path, frame=True)
    assert title == "Feature 7 layer 1"


def test_the_page_asks_for_nothing_outside() -> None:
    page = dashboard_page(CONTENT)
    assert "default-src 'none'" in page
    assert "connect-src" not in page
    assert not any(word in page for word in ("http://", "https://", "fetch(", "{{"))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("features",), [], "dashboard: features must have at least 1 item"),
        (("features", 0, "feature"), None, r"dashboard: features\[0\].feature must be an integer, got None"),
        (("features", 0, "heads", 0), {"layer": 0}, r"features\[0\].heads\[0\].head is required"),
        (("features", 0, "density"), 2, r"features\[0\].density must lie between 0 and 1"),
        (("features", 0, "prompts", 0, "substituted"), [1.0], r"prompts\[0\].substituted must have one number a token"),
        (("features", 0, "examples", 0, "activations"), [1.0], r"examples\[0\].activations must have one number"),
        (("blind",), {"revealed": True}, "blind.steps is required"),
    ],
)
def test_offences_are_named(path: tuple[Any, ...], value: Any, message: str) -> None:
    content = copy.deepcopy(CONTENT)
    validate_dashboard(content)
    jsonschema.validate(content, DASHBOARD_SCHEMA)
    place: Any = content
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        dashboard_page(content)
