"""Effects along all paths against dense inverses, and their sums over leaves (METHODS section 6: O6, O7)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pullback as pb
from pullback.attribution import DirectionTarget, Graph, LogitDifference
from pullback.attribution import influence as inf
from pullback.attribution import nodes as k
from pullback.lens import as_lens
from tests import models
from tests.attribution.test_graph import by_hand
from tests.attribution.test_identities import _dense, tokens_of
from tests.attribution.test_targets import an_active_feature, an_idle_feature, vector

LEAVES = (k.EMBEDDING, k.POSITION, k.ERROR, k.BIAS, k.OWN)


def a_graph(name: str, **options: Any) -> Graph:
    lens = as_lens(models.build(name))
    sets = models.random_clt(lens) if name == "gpt2-folded" else models.random_set(lens, skip=True)
    tokens = tokens_of(6)
    asked = [
        4,
        LogitDifference((7, 9)),
        an_active_feature(lens, sets, tokens, 1, 4),
        an_idle_feature(lens, sets, tokens, 2, 3),
        DirectionTarget(vector(lens), "blocks.1.hook_resid_post"),
    ]
    return pb.attribute(lens, sets, tokens, attribution_targets=asked, **options)


def relative_gap(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", ["LN-gqa-standard-plain", "RMS-mha-rotary-gated", "neox-parallel", "gpt2-folded"])
def test_effects_are_what_the_dense_inverse_gives(name: str) -> None:
    graph = a_graph(name)
    A, eye = _dense(graph), torch.eye(graph.n_nodes, dtype=torch.float64)
    value = graph.nodes.preactivation.nan_to_num(1.0)
    through = torch.linalg.inv(eye - A / value[:, None])
    targets = graph.of_kind(k.FEATURE, k.LOGIT, k.DIRECTION).nonzero()[:, 0]
    found = graph.total_effects(targets.tolist())
    assert relative_gap(found.total, (value[:, None] * through)[targets]) <= 1e-9
    assert relative_gap(graph.shares(targets.tolist()), through[targets]) <= 1e-9
    assert torch.equal(found.direct, A[targets])
    assert relative_gap(found.indirect, (value[:, None] * (through - eye) - A)[targets]) <= 1e-9
    # (I - D)^-1 diag(a), with the activations that D = A diag(1 / a) is made of, up to what a target does to itself.
    a = torch.where(graph.of_kind(k.FEATURE) & (graph.nodes.activation != 0), graph.nodes.activation, 1.0)
    in_units = torch.linalg.inv(eye - A / a) * a
    apart = ~torch.eye(graph.n_nodes, dtype=torch.bool)[targets]
    assert relative_gap(found.total[apart], in_units[targets][apart]) <= 1e-9


@pytest.mark.parametrize("name", ["LN-gqa-standard-plain", "neox-parallel", "gpt2-folded"])
@pytest.mark.parametrize(
    "options",
    [{}, {"zero_positions": slice(0, 1)}, {"max_feature_nodes": 20}, {"edges_per_target": 9}, {"edge_mass": 0.8}],
    ids=str,
)
def test_leaves_and_dropped_mass_sum_to_the_target(name: str, options: dict[str, Any]) -> None:
    """O7, of whole graphs and of parts: the sum over all leaves, biases among them, is the target itself."""
    whole = a_graph(name, **options)
    for graph in (whole, whole.prune(0.6, 0.8)):
        found = graph.total_effects()
        assert len(found.targets) == 5
        sums = found.total[:, graph.of_kind(*LEAVES)].sum(1) + found.dropped
        value = graph.nodes.preactivation[found.targets]
        assert torch.allclose(sums, value, rtol=1e-9, atol=1e-9 * float(found.total.abs().max()))
    if not options:
        assert float(whole.total_effects().dropped.abs().max()) == 0


def test_influence_on_single_nodes_is_the_inverse_of_shares() -> None:
    graph = a_graph("LN-gqa-standard-plain")
    for bias in (False, True):
        A = torch.zeros(graph.n_nodes, graph.n_nodes, dtype=torch.float64)
        A[graph.rows(), graph.sources.long()] = inf.normalized(graph, bias=bias)
        eye = torch.eye(graph.n_nodes, dtype=torch.float64)
        targets = graph.of_kind(k.FEATURE, k.LOGIT).nonzero()[::7, 0]
        found = graph.influence(targets.tolist(), bias=bias)
        assert relative_gap(found, (torch.linalg.inv(eye - A) - eye)[targets]) <= 1e-9
    weights = graph.target_weights[graph.explained]
    assert torch.allclose(weights @ graph.influence(graph.places().tolist()), graph.influence(), atol=1e-12)


def test_by_hand() -> None:
    """logit0 = 3 a - 1 b + 5 bias, with a = 4 tok0 and b = 1 tok0 + 1 tok1 + 2 err: it is 7."""
    hand = by_hand()
    found = hand.total_effects(["2_2_1"])
    assert found.total[0].tolist() == pytest.approx([3 - 1 / 4, -1 / 4, 3, -1, -2 / 4, 5, 7, 0])
    assert found.direct[0].tolist() == pytest.approx([0, 0, 3, -1, 0, 5, 0, 0])
    assert found.indirect[0].tolist() == pytest.approx([3 - 1 / 4, -1 / 4, 0, 0, -2 / 4, 0, 0, 0])
    assert hand.shares("2_2_1")[0].tolist() == pytest.approx([x / 7 for x in found.total[0].tolist()])
    assert hand.total_effects().targets.tolist() == [6, 7]
    with pytest.raises(KeyError):
        hand.total_effects(["none"])
    with pytest.raises(IndexError, match=r"numbered 0\.\.7"):
        hand.shares([8])
