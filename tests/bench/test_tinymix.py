"""The tiny-mix report: what is measured, and what the page makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.tinymix import across, measure, report
from pullback import zoo

LEVELS = {"ce_original": 0.1, "ce_mean_ablated": 3.0, "ce_zero_ablated": 4.0}


def made_up(work: Path, ahead: float, seeds: tuple[int, ...] = (0, 1, 2)) -> None:
    """Sweeps in which transcoders recover `ahead` more than autoencoders, and 0.001 more with every seed."""
    for seed in seeds:
        arms = {}
        for kind in ("transcoder", "sae"):
            for k in (4, 8):
                better = (ahead + 0.001 * seed) * (kind == "transcoder")
                figures = dict.fromkeys(report.FIGURES, 0.5) | LEVELS | {"ce_recovered": 0.8 + better}
                figures |= {"l0": {"0": float(k)}, "dead": {"0": 0.1}, "density": {"0": [1, 2]}}
                arms[f"{kind}-{k}-{seed}"] = {
                    "kind": kind, "architecture": "topk", "setting": "k", "value": k, "seed": seed,
                    "settings": measure.config().to_dict(), "figures": {"answers": figures, "every token": figures},
                }  # fmt: skip
        content = {
            "versions": {"pullback": "1", "torch": "2", "transformer_lens": "4"},
            "evaluation": {"answers": {"prompts": 768}, "every token": {"prompts": 1000}},
            "arms": arms,
        }
        (work / f"seed{seed}").mkdir(parents=True)
        (work / f"seed{seed}" / "sweep.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("ahead", "verdict"),
    [(0.01, "**Holds**"), (-0.001, "**On par**"), (-0.05, "**Does not hold**")],
)
def test_the_page_says_what_came_out(tmp_path: Path, ahead: float, verdict: str) -> None:
    made_up(tmp_path / "work", ahead)
    report.collect(tmp_path / "work", tmp_path / "results")
    page = report.page(tmp_path / "results")
    assert page.count(verdict) == 2
    assert f"{ahead:+.4f}, {ahead + 0.001:+.4f}, {ahead + 0.002:+.4f} by seed" in page
    assert f"| CE recovered | 4.0 | {0.801 + ahead:.4f} | 0.8000 | {ahead + 0.001:+.4f} | 0.0010 |" in page
    assert "1,500 steps of 512 tokens" in page
    kept = json.loads((tmp_path / "results" / report.SWEEP).read_text())
    assert len(kept["arms"]) == 12
    assert "density" not in str(kept)


def test_a_cross_layer_transcoder_of_equal_parameters() -> None:
    per_layer, d, n_layers = 1024, 128, 4
    features = across.equal_features(per_layer, n_layers, d)
    parameters = sum(features * (d + 1 + d * (n_layers - layer)) for layer in range(n_layers))
    assert parameters == pytest.approx(n_layers * per_layer * (2 * d + 1), rel=1e-3)


def test_dictionaries_are_measured_for_one_table(tmp_path: Path) -> None:
    model, sets = zoo.load("tiny-mix"), zoo.transcoders("tiny-mix")
    path = tmp_path / "across.json"
    assert across.section(path) == []
    across.compare(model, {"per-layer": [sets]}, path, n_batches=1, n_answers=8, n_graphs=2)
    found = json.loads(path.read_text())["per-layer"][0]
    assert found["n_parameters"] == 4 * (1024 * 257 + 128)
    assert found["l0"] == pytest.approx(64, abs=2)
    assert 0 < found["fvu"] < 0.2
    assert 0.8 < found["ce_recovered"] < 1.05
    assert 0 < found["replacement"] <= found["completeness"] <= 1
    lines = across.section(path)
    assert any(line.startswith("| parameters | 1,053,184 |") for line in lines)


def test_nothing_measured_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="measure first"):
        report.collect(tmp_path, tmp_path)


def test_the_page_that_ships_is_that_of_the_results_that_ship() -> None:
    assert report.PAGE.read_text() == report.page()
