"""What a graph foretells against what happens: exact where it must be, and a score where it need not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import pullback as pb
from pullback.attribution.nodes import FEATURE, LOGIT
from pullback.causal import Margin, margin_of, predicted, total_effects
from pullback.causal.agreement import _stratified, _Test
from pullback.lens import as_lens, trace
from tests import models
from tests.causal.exact import own_mlps, prompts, relu_model

TOKENS, OTHER = prompts(2, 6, seed=1)


@pytest.mark.parametrize("draw", [models.random_set, models.random_clt])
@pytest.mark.parametrize("name", ["LN-gqa-standard-plain", "RMS-gqa-rotary-gated", "neox-parallel"])
def test_with_everything_frozen_a_graph_foretells_everything(name: str, draw: Any) -> None:
    """Errors, biases and skip paths included: random transcoders explain little, and still nothing is missed."""
    lens = as_lens(models.build(name))
    sets = draw(lens, skip=True)
    graph = pb.attribute(lens, sets, TOKENS)
    for factor in (0.0, 3.0):
        found = pb.agreement(lens, sets, graph, n=6, share=1, factor=factor, runs=["direct"]).runs["direct"]
        assert found.spearman == pytest.approx(1, abs=1e-12)
        assert found.cosine == pytest.approx(1, abs=1e-12)
        assert found.nmse < 1e-20


def test_edges_explain_logits_before_a_soft_cap() -> None:
    lens = as_lens(models.native(seed=0, output_logits_soft_cap=3.0))
    sets = models.random_set(lens)
    graph = pb.attribute(lens, sets, TOKENS)
    test = _Test(lens, sets, graph, trace(lens, TOKENS), margin_of(graph), factor=0.0)
    for node in _stratified(graph, 4, 1.0, seed=0):
        (foretold, _), (measured, _) = test._foretold("direct", node), test._measured("direct", node)
        assert float(foretold) == pytest.approx(float(measured), abs=1e-9)


def test_runs_that_are_not_frozen_agree_less() -> None:
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    sets = models.random_set(lens)
    graph = pb.attribute(lens, sets, TOKENS)
    found = pb.agreement(lens, sets, graph, n=8)
    assert found.n == 8
    for run in ("constrained", "unconstrained"):
        assert found.runs[run].nmse > 1e-3
        assert 0 < found.runs[run].cosine < 1 - 1e-3


def linear_model() -> tuple[Any, Any]:
    """No norm, and ReLUs that are all on and far from off: with patterns held, the margin is linear in every node."""
    model = models.native(seed=31, normalization_type=None, act_fn="relu")
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.b_in.add_(500.0)
            block.mlp.W_out.mul_(1e-3)
    lens = as_lens(model)
    return lens, own_mlps(lens)


def test_where_the_model_is_linear_total_effects_are_what_happens() -> None:
    lens, sets = linear_model()
    graph = pb.attribute(lens, sets, TOKENS)
    margin = margin_of(graph)
    effects = total_effects(graph, margin)
    base = margin(lens.logits(TOKENS[None]))
    for layer, pos, feature in graph.top_features(3) + [(0, 2, 5), (2, 5, 1)]:
        node = graph.node_ids().index(f"{layer}_{feature}_{pos}")
        after = margin(pb.intervene(lens, sets, TOKENS, [(layer, pos, feature, 0.0)])[None])
        assert float(effects[node]) == pytest.approx(float(base - after), abs=1e-8 * float(base.abs()))
    found = pb.agreement(lens, sets, graph, n=6, factor=0.5, runs=["constrained"]).runs["constrained"]
    assert found.spearman == pytest.approx(1, abs=1e-12)
    assert found.nmse < 1e-16


def test_total_effects_are_the_inverse_of_one_less_the_slopes() -> None:
    """METHODS 5.1: act_t (I - A / act)^-1; leaves and what was dropped sum to the margin (O7)."""
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    sets = models.random_set(lens)
    graph = pb.attribute(lens, sets, TOKENS)
    n, margin = graph.n_nodes, Margin(int(graph.nodes.feature[-1]), int(graph.nodes.feature[-2]))
    A = torch.zeros(n, n, dtype=torch.float64)
    A[graph.rows(), graph.sources.long()] = graph.weights
    a = torch.where(graph.of_kind(FEATURE), graph.nodes.activation, 1)
    slopes = A / a  # of each source's column
    whole = torch.linalg.inv(torch.eye(n, dtype=torch.float64) - slopes)
    weights = margin.weights(graph)
    effects = total_effects(graph, margin)
    not_logit = ~graph.of_kind(LOGIT)
    assert torch.allclose(effects[not_logit], ((weights @ whole) * a)[not_logit], atol=1e-9)
    node = int(graph.of_kind(FEATURE).nonzero()[7])
    moved = predicted(graph, node, 1.5)
    later = torch.arange(n) != node
    assert torch.allclose(moved[later], 1.5 * whole[later, node], atol=1e-9)
    leaves = ~graph.of_kind(FEATURE, LOGIT)
    assert float(effects[leaves].sum()) == pytest.approx(float(margin(lens.logits(TOKENS[None]))), abs=1e-9)
    held = predicted(graph, node, 1.5, range(3))
    assert torch.allclose(held[later], 1.5 * slopes[later, node], atol=1e-12), "direct effects are edges"


def test_the_score_stays_with_the_graph(tmp_path: Path) -> None:
    lens = relu_model()
    sets = own_mlps(lens)
    graph = pb.attribute(lens, sets, TOKENS)
    found = pb.agreement(lens, sets, graph, n=4, seed=3, runs=["direct", "unconstrained"])
    graph.save(tmp_path / "graph.safetensors")
    kept = pb.Graph.load(tmp_path / "graph.safetensors").prune().meta["agreement"]
    assert kept["n"] == 4
    assert kept["runs"]["unconstrained"]["cosine"] == found.runs["unconstrained"].cosine
    assert pb.agreement(lens, sets, graph, n=4, seed=3, runs=["direct", "unconstrained"]) == found
    one = pb.agreement(lens, sets, graph, n=1, runs=["direct"])
    assert one.runs["direct"].spearman is None, "one feature has no rank"


def test_features_are_drawn_from_every_group() -> None:
    lens = relu_model()
    graph = pb.attribute(lens, own_mlps(lens), TOKENS)
    features = graph.of_kind(FEATURE).nonzero()[:, 0]
    ranked = features[torch.argsort(graph.influence()[features], descending=True, stable=True)].tolist()
    drawn = _stratified(graph, 10, 1.0, seed=0)
    size = len(ranked) / 10
    assert [int(ranked.index(node) // size) for node in drawn] == list(range(10))
    assert _stratified(graph, 10, 1.0, seed=1) != drawn
    assert _stratified(graph, 10**6, 1.0, seed=1) == ranked
    few = _stratified(graph, 10**6, 0.5, seed=0)
    total, influence = graph.influence()[features].sum(), graph.influence()
    assert float(influence[few].sum()) >= 0.5 * float(total) > float(influence[few[:-1]].sum())


def test_a_margin_is_made_of_logit_nodes() -> None:
    lens = relu_model()
    graph = pb.attribute(lens, own_mlps(lens), TOKENS, attribution_targets=[4, 9])
    logits = lens.logits(TOKENS[None])
    for margin in (Margin(4, 9), Margin(9)):
        assert float(margin.weights(graph) @ graph.nodes.preactivation.nan_to_num()) == pytest.approx(
            float(margin(logits)), abs=1e-9
        )
    assert margin_of(graph) in (Margin(4, 9), Margin(9, 4))
    with pytest.raises(
        ValueError, match=r"the graph explains the tokens \[4, 9\], not 7; name it in attribution_targets"
    ):
        Margin(7).weights(graph)


def test_what_cannot_be_compared_is_said() -> None:
    lens = as_lens(models.build("gpt2"))
    sets = models.random_set(lens)
    graph = pb.attribute(lens, sets, TOKENS)

    def refused(sentence: str, **options: Any) -> None:
        with pytest.raises(ValueError, match=sentence):
            pb.agreement(lens, sets, **{"graph": graph} | options)

    refused("there are the runs direct, constrained, unconstrained, not iterative", runs=["iterative"])
    refused("n must be at least 1", n=0)
    refused("share in", share=0.0)
    empty = pb.attribute(lens, sets, TOKENS, max_feature_nodes=0)
    refused("the graph have features", graph=empty)
    graph.meta["tokens"] = OTHER.tolist()
    refused("not what this model and set compute on its prompt")
