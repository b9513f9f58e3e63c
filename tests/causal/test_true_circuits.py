"""Circuits that are found equal the true one, which ablating every active feature of the model by itself shows.

Three ways to find one: hierarchical attribution, greedy paths, and a whole graph that is pruned.

* exact: dense random weights, so no neuron is idle, and a feature matters exactly where the target can see it: those of
  every position up to it in the layers below whose heads or MLPs still run, and of the last layer those at the target's
  own position alone.
* planted: by its formulas state, relation and answer; 8 faint distractors, which do a few hundredths of it, besides.
"""

from __future__ import annotations

import pytest
import torch

import pullback as pb
from pullback.attribution.hierarchical import Gate, circuit_of
from pullback.attribution.nodes import FEATURE
from pullback.causal import CircuitRunner, Margin, NodeSet
from pullback.zoo.planted_words import IDS

Place = tuple[int, int, int]
"""Layer, position and id of a feature."""
TOKENS, LOGIT = [1, 5, 2], 3
PLANTED = pb.zoo.truth("planted")


def lost(lens: pb.Lens, sets: pb.TranscoderSet, graph: pb.Graph, what: Margin | pb.FeatureTarget) -> dict[Place, float]:
    """The share of the target that is lost without it, of every active feature but the target itself, one run of the
    model for each, patterns frozen."""
    nodes = NodeSet.active(lens, sets, graph.meta["tokens"])
    runner = CircuitRunner(lens, sets, graph.meta["tokens"], nodes)
    full = runner.unchanged(what)
    if isinstance(what, Margin):  # the same, many copies of the prompt at a time
        scores = pb.node_scores(lens, sets, graph, methods=["exact"], margin=what, freeze="attention").scores["exact"]
        assert sorted(NodeSet.of(graph).places()) == sorted(nodes.places()), "all that are active"
        found = zip(NodeSet.of(graph).places(), (scores / full).tolist(), strict=True)
        return {place: share for place, share in found if place[2] >= 0}
    own = (what.layer, what.position, what.feature)
    every = torch.arange(len(nodes))
    return {
        place: 1 - runner.measured(what, every != n) / full
        for n, place in enumerate(nodes.places())
        if place[2] >= 0 and place != own
    }


def places(graph: pb.Graph) -> set[Place]:
    """Features of a graph that are not what it explains."""
    n = graph.nodes[graph.of_kind(FEATURE) & ~graph.explained]
    return set(zip(n.layer.tolist(), n.pos.tolist(), n.feature.tolist(), strict=True))


def places_of(names: list[str]) -> set[Place]:
    """Of nodes of paths, those that are features."""
    words = [name.split("_") for name in names]
    return {(int(w[0]), int(w[2]), int(w[1])) for w in words if w[0].isdigit() and len(w) == 3}


@pytest.fixture(scope="module")
def exact() -> tuple[object, pb.TranscoderSet]:
    return pb.zoo.load("exact", dtype=torch.float64), pb.zoo.transcoders("exact", dtype=torch.float64)


@pytest.mark.parametrize("target", [LOGIT, pb.FeatureTarget(1, 1, 0)])
def test_exact(exact: tuple[object, pb.TranscoderSet], target: int | pb.FeatureTarget) -> None:
    model, sets = exact
    lens = pb.as_lens(model)
    active = {place for place in NodeSet.active(lens, sets, TOKENS).places() if place[2] >= 0}
    if isinstance(target, pb.FeatureTarget):
        first = min(f for layer, pos, f in active if (layer, pos) == (target.layer, target.position))
        target = pb.FeatureTarget(target.layer, target.position, first)
        seen = {place for place in active if place[0] < target.layer and place[1] <= target.position}
    else:
        top, last = lens.n_layers - 1, len(TOKENS) - 1
        seen = {place for place in active if place[0] < top or place[1] == last}
    graph = pb.attribute(lens, sets, TOKENS, attribution_targets=target)
    shares = lost(lens, sets, graph, target if isinstance(target, pb.FeatureTarget) else Margin(target))
    truth = {place for place, share in shares.items() if abs(share) > 1e-10}
    assert truth == seen, "what is written here of the construction is so"
    assert 0 < len(truth) < len(active)

    assert places(circuit_of(graph, gate=Gate(0.0, "abs")).graph) == truth
    assert places(graph.prune(1.0, 1.0)) == truth
    paths = pb.greedy_paths(lens, sets, TOKENS, target, num_iters=2, num_branches=None)
    names = {name for path in paths for name in path.nodes[1:]}
    assert places_of(sorted(names)) == truth


@pytest.mark.parametrize("prompt", PLANTED.prompts[::20], ids=lambda p: p.text)
def test_planted(prompt: pb.zoo.planted_words.PlantedPrompt) -> None:
    model, sets = pb.zoo.load("planted", dtype=torch.float64), pb.zoo.transcoders("planted", dtype=torch.float64)
    lens = pb.as_lens(model)
    graph = pb.attribute(lens, sets, prompt.text, attribution_targets=prompt.answer)
    shares = lost(lens, sets, graph, Margin(IDS[prompt.answer]))
    truth = {place for place, share in shares.items() if share > 0.5}
    live = {place for place, share in shares.items() if abs(share) > 1e-9}
    assert truth == set(PLANTED.features(prompt))
    assert len(live) == len(truth) + 8
    assert max(abs(shares[place]) for place in live - truth) < 0.05

    assert places(circuit_of(graph, gate=Gate(0.2, relative=True)).graph) == truth
    assert places(circuit_of(graph, gate=Gate(1e-9, "abs", relative=True)).graph) == live
    assert places(graph.prune()) == truth
    paths = pb.greedy_paths(lens, sets, prompt.text, prompt.answer, num_iters=4, num_branches=8)
    strong = [path.nodes[1:] for path in paths if path.contribution > 0.2 * paths.root_value]
    assert places_of([name for nodes in strong for name in nodes]) == truth
