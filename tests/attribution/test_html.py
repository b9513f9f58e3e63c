"""Pages drawn from graphs: cards of their features, and two graphs of a model on one page."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pullback as pb


@pytest.fixture(scope="module")
def graphs() -> list[pb.Graph]:
    model, sets = pb.zoo.load("exact"), pb.zoo.transcoders("exact")
    return [pb.attribute(model, sets, torch.tensor(tokens)) for tokens in ([1, 2, 3], [1, 4, 3])]


def test_cards_are_on_the_page(graphs: list[pb.Graph]) -> None:
    layer, _, feature = graphs[0].top_features(1)[0]
    page = graphs[0].to_html(cards={f"{layer}_{feature}": {"density": 0.125}})
    assert f'"cards":{{"{layer}_{feature}":{{"density":0.125}}}}' in page


def test_two_graphs_on_one_page(graphs: list[pb.Graph], tmp_path: Path) -> None:
    page = graphs[0].to_html(tmp_path / "both.html", compare=graphs[1])
    assert (tmp_path / "both.html").read_text(encoding="utf-8") == page
    assert '"compared":{"a":' in page
    assert '"side":"a"' in page
    assert '"compared":{"a":' not in graphs[0].to_html()
