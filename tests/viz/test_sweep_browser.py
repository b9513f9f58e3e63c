"""The page of a sweep: curves between the bounds, published ones beside them, every arm in the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tools.browser import NAMES, binary

from pullback.viz import sweep_page
from tests.viz import browser

needs_browser = pytest.mark.skipif(binary() is None, reason=f"no browser: none of {', '.join(NAMES)} is on the path")

PUBLISHED = [{"kind": "sae", "source": "Somebody", "points": [{"l0": 9.0, "ce": 2.4}, {"l0": 3.0, "ce": 2.6}]}]


def figures(l0: float, ce: float) -> dict[str, Any]:
    return {
        "l0": {"3": l0 - 1, "4": l0 + 1},
        "fvu": {"3": 0.1, "4": 0.3},
        "dead": {"3": 0.0, "4": 0.5},
        "ce_original": 2.0,
        "ce_replaced": ce,
        "ce_mean_ablated": 3.0,
        "ce_zero_ablated": 9.0,
        "ce_recovered": 3.0 - ce,
        "ce_recovered_from_zero": (9.0 - ce) / 7,
        "kl": ce - 2.0,
        "top1_agreement": 0.75,
    }


def content(evaluations: tuple[str, ...] = ("held out", "train")) -> dict[str, Any]:
    arms = {
        f"{kind}{k}{seed}": {
            "kind": kind,
            "architecture": "topk",
            "setting": "k",
            "value": k,
            "seed": seed,
            "figures": {name: figures(k, 2.0 + 1 / k + 0.01 * seed + shift) for name in evaluations},
        }
        for kind, shift in (("transcoder", 0.0), ("sae", 0.05))
        for k in (2, 4, 8)
        for seed in (0, 1)
    }
    return {"model": {"3": {"model_name": "toy"}, "4": {"model_name": "toy"}}, "arms": arms}


@needs_browser
def test_curves_bounds_and_table(tmp_path: Path) -> None:
    script = """
    const state = () => ({ text: $("#chart svg").textContent, levels: $$(".level").length });
    const near = state(); $("#bounds").click(); const far = state();
    return { near, far, heading: $("#heading").textContent, dots: $$("#chart .dot").length, hollow: $$("#chart .dot.published").length,
      curves: $$("#chart .curve").length, titles: $$("#chart .dot title").map((t) => t.textContent), legend: $("#legend").innerText,
      rows: $$("#table tbody tr").map((tr) => tr.innerText), options: $$("#evaluation option").length };
    """  # noqa: E501
    got = browser.drive(sweep_page(content(), published=PUBLISHED), script, tmp_path)
    assert got["heading"] == "toy, layers 3, 4"
    assert (got["dots"], got["hollow"], got["curves"], got["options"]) == (14, 2, 3, 2)
    assert got["near"]["levels"] == 1
    assert "outputs at their means: 3.000, above" in got["near"]["text"]
    assert got["far"]["levels"] == 3
    assert all(f"{name}: " in got["far"]["text"] for name in ("the model", "outputs at their means", "outputs at zero"))
    assert "transcoder topk, k 4, seed 1: L0 4.00, CE 2.2600" in got["titles"]
    assert all(name in got["legend"] for name in ("transcoder topk", "sae topk", "sae, Somebody"))
    assert len(got["rows"]) == 12
    assert "2.0\t0.2000\t25%\t2.5000\t0.5000\t0.9286\t0.5000\t75%" in got["rows"][0].replace(" ", "")


@needs_browser
def test_one_arm_without_a_loss(tmp_path: Path) -> None:
    one = content(("tokens",))
    one["arms"] = dict(list(one["arms"].items())[:1])
    script = "return [$('#chart').innerText, $$('.dot').length, $('#which').hidden];"
    assert browser.drive(sweep_page(one), script, tmp_path)[1:] == [2, True]  # the dot, and its legend
    next(iter(one["arms"].values()))["figures"]["tokens"]["ce_replaced"] = None
    assert browser.drive(sweep_page(one), script, tmp_path) == ["No arm has both an L0 and a loss.", 0, True]
    with pytest.raises(ValueError, match="no finished arm"):
        sweep_page(one | {"arms": {}})


@needs_browser
@pytest.mark.parametrize("size", [(1280, 800), (420, 700)])
def test_it_fits_and_turns_dark(tmp_path: Path, size: tuple[int, int]) -> None:
    script = """
    const paper = () => getComputedStyle(document.body).backgroundColor, before = paper();
    $("#theme").click();
    return [paper() !== before, document.documentElement.scrollWidth <= innerWidth];
    """
    assert browser.drive(sweep_page(content()), script, tmp_path, size=size) == [True, True]


def test_the_page_asks_for_nothing_outside() -> None:
    page = sweep_page(content())
    assert "default-src 'none'" in page
    assert not any(word in page for word in ("http://", "https://", "fetch(", "{{"))
