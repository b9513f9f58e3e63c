"""Rankings by hierarchical attribution: an order for what raises the margin, and another for what moves it."""

from __future__ import annotations

import json

import pytest
import torch

import pullback as pb
from pullback.attribution.effects import values
from pullback.attribution.hierarchical import entry_thresholds
from pullback.causal import Margin, NodeSet, Rankings, hierarchical_scores, margin_of
from pullback.lens import as_lens
from tests import models
from tests.causal.exact import prompts

TOKENS = prompts(1, 6, seed=1)[0]


def test_each_order_has_the_gates_of_its_own_mode() -> None:
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    graph = pb.attribute(lens, models.random_set(lens), TOKENS)
    margin = margin_of(graph)
    found = hierarchical_scores(graph)
    start, here = margin.weights(graph).double() * values(graph), NodeSet.mask(graph)
    for order, mode in ((found.signed, "signed"), (found.absolute, "abs")):
        assert torch.equal(order, entry_thresholds(graph, start, mode)[here])
    # What lowers the margin has no place in the first order and one in the second.
    effects = pb.causal.graph_scores(graph, margin)
    lowest = effects < 0.3 * float(effects.min())
    assert float(found.signed[lowest].min()) == 0 < float(found.absolute[lowest].min())


def test_curves_and_areas_follow_both_orders() -> None:
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    sets = models.random_set(lens)
    graph = pb.attribute(lens, sets, TOKENS)
    scores = hierarchical_scores(graph)
    given = {"both": scores, "signed": scores.signed, "absolute": scores.absolute}
    curves = pb.faithfulness_curves(lens, sets, graph, given, sizes=[0.1, 0.3, 1])
    both, areas = curves.curves["both"], curves.areas()
    assert both["signed"] == curves.curves["signed"]["signed"]
    assert both["absolute"] == curves.curves["absolute"]["absolute"] != both["signed"]
    assert areas["both"] == (areas["signed"].cpr, areas["absolute"].cmd)
    assert areas["both"].cmd != areas["signed"].cmd
    of_tensors = pb.faithfulness_curves(
        lens, sets, graph, given, sizes=iter(torch.tensor([0.1, 0.3, 1], dtype=torch.float64))
    )
    assert json.dumps(of_tensors.to_dict()) == json.dumps(curves.to_dict())


def test_scores_with_a_sign_are_ranked_by_size_too() -> None:
    scores = torch.tensor([1.0, -2.0, 0.5])
    assert torch.equal(Rankings.of(scores).signed, scores)
    assert Rankings.of(scores).absolute.tolist() == [1, 2, 0.5]
    lens = as_lens(models.build("gpt2"))
    graph = pb.attribute(lens, models.random_set(lens), TOKENS, attribution_targets=[3, 7])
    with pytest.raises(ValueError, match=r"the graph explains the tokens \[\d+.*\], not 49"):
        hierarchical_scores(graph, Margin(49))
