"""Graphs of cross-layer transcoders: rows sum, both engines agree, and an edge is what its sentence says."""

from __future__ import annotations

from typing import Any

import pytest

import pullback as pb
from pullback.attribution import nodes as k
from pullback.causal import run_interventions
from pullback.lens import as_lens
from tests import models
from tests.attribution.test_identities import assert_same_edges, tokens_of

TYINGS = ["none", "per_source", "per_target"]
WIRINGS = ["LN-gqa-standard-plain", "RMS-mha-rotary-gated", "neox-parallel", "gpt2-folded"]


@pytest.mark.parametrize("tying", TYINGS)
@pytest.mark.parametrize("name", WIRINGS)
def test_engines_agree_and_rows_sum(name: str, tying: str) -> None:
    lens = as_lens(models.build(name))
    clt = models.random_clt(lens, tying=tying)
    linear = pb.attribute(lens, clt, tokens_of(6), max_n_logits=3, batch_size=16)
    oracle = pb.attribute(lens, clt, tokens_of(6), max_n_logits=3, engine="autograd")
    assert linear.check() <= 1e-9
    assert_same_edges(linear, oracle, 1e-9)
    assert float(linear.nodes.activation[linear.of_kind(k.ERROR)].min()) > 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {"skip": True, "hook_in": "ln2.hook_normalized"},
        {"layers": [0, 2]},
        {"layers": [1], "activation": "relu"},
        {"activation": "jumprelu", "hook_in": "hook_resid_mid", "tying": "per_target"},
    ],
    ids=str,
)
def test_skip_paths_and_layers_left_out(options: dict[str, Any]) -> None:
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    clt = models.random_clt(lens, **options)
    kwargs = {"max_n_logits": 2, "zero_positions": slice(0, 1)}
    linear = pb.attribute(lens, clt, tokens_of(6), **kwargs)
    assert linear.check() <= 1e-9
    assert_same_edges(linear, pb.attribute(lens, clt, tokens_of(6), engine="autograd", **kwargs), 1e-9)


@pytest.mark.parametrize("tying", TYINGS)
@pytest.mark.parametrize("name", WIRINGS)
def test_an_intervention_under_all_freezes_moves_targets_by_the_edges(name: str, tying: str) -> None:
    """The perturbation oracle (METHODS 5.1): a feature made twice as strong, at all layers it writes to."""
    lens = as_lens(models.build(name))
    clt = models.random_clt(lens, tying=tying)
    tokens = tokens_of(6)
    graph = pb.attribute(lens, clt, tokens, max_n_logits=3)
    nodes = graph.nodes
    first = int((graph.of_kind(k.FEATURE) & (nodes.layer == 0) & (nodes.pos == 3)).nonzero()[0])
    place = (0, 3, int(nodes.feature[first]))
    base = run_interventions(lens, clt, tokens, [], freeze="all")
    seen = run_interventions(lens, clt, tokens, [(*place, 2 * float(nodes.activation[first]))], freeze="all")
    moved = 0
    for target in graph.of_kind(k.FEATURE).nonzero()[:, 0].tolist():
        layer, pos, feature = int(nodes.layer[target]), int(nodes.pos[target]), int(nodes.feature[target])
        change = (seen.inputs[layer][pos] - base.inputs[layer][pos]) @ clt[layer].W_enc[feature]
        edge = graph.edge(graph.node_ids()[first], graph.node_ids()[target])
        assert float(change) == pytest.approx(edge, abs=1e-9)
        moved += abs(edge) > 1e-6
    logits = seen.logits[-1] - base.logits[-1]
    for target in graph.of_kind(k.LOGIT).nonzero()[:, 0].tolist():
        change = logits[int(nodes.feature[target])] - logits.mean()
        assert float(change) == pytest.approx(graph.edge(graph.node_ids()[first], graph.node_ids()[target]), abs=1e-9)
    assert moved > 3
