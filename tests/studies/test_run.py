"""A study from its command to its page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pullback import cli
from pullback.studies.page import html


@pytest.mark.parametrize("name", ["greater-than", "brackets"])
def test_one_command_writes_a_page_and_its_figures(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--n", "16", "--examples", "1", "--draws", "2", "--out", str(tmp_path)]
    chosen = ["--ablation", "mean", "--errors", "dropped"] if name == "brackets" else []
    assert cli.main(["study", name, *options, *chosen]) == 0
    said = capsys.readouterr().out
    assert "of the margin of 16 prompts" in said
    report = json.loads((tmp_path / f"{name}.json").read_text())
    check = report["checks"][0]
    assert check["dropped"] > 0.6
    assert len(check["control"]) == 2
    assert check["cards"][0]["writes"]
    assert check["spared"] == pytest.approx(sum(check["control"]) / 2)
    circuit = report["circuits"][0]["circuit"]
    assert circuit["features"][0]["share"] == max(f["share"] for f in circuit["features"])
    assert len(circuit["heads"]) == 16
    assert report["circuits"][0]["check"]["drawn"] == 1
    assert sum(report["circuits"][0]["token_shares"]) == pytest.approx(1, abs=1e-3)
    page = (tmp_path / f"{name}.html").read_text()
    headings = ["Prompts", "Causal check", "Heads and layers", "Circuits of single prompts", "What falls short"]
    assert all(f"<h2>{heading}</h2>" in page for heading in headings)
    assert not re.search(r"(src|href)=|url\(|<script", page), "nothing is fetched"
    assert "Circuits of single prompts" not in html(report | {"circuits": []})
    curves = report["circuits"][0]["faithfulness"]
    ends = [orders["signed"]["faithfulness"][-1] for orders in curves["curves"].values()]
    if chosen:
        assert (curves["ablation"], curves["errors"]) == ("mean", "dropped")
        assert ends[0] == pytest.approx(ends[1])
        assert ends[0] != pytest.approx(1, abs=1e-3), "all features without what transcoders miss"
        assert "at its mean over the prompts" in page
        assert "go from every circuit" in page
        assert "nodes kept, all others at their means" in page
    else:
        assert (curves["ablation"], curves["errors"]) == ("zero", "nodes")
        assert ends == pytest.approx([1, 1], abs=1e-3)
        assert "everything else at zero" in page
    if name == "greater-than":
        curve = report["years"]["curve"]
        assert curve["features"][-1] > curve["features"][0]
        assert report["years"]["paths"]["paths"]


def test_published_figures_are_refused_for_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "greater-than", "--reference", "--out", str(tmp_path)]) == 2
    assert "GPT-2 small" in capsys.readouterr().err
    assert cli.main(["study", "ioi", "--reference"]) == 2
