"""Gated attribution: the authors' example by hand, and against autograd with hooks that gate gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import pullback as pb
from pullback.attribution import Graph
from pullback.attribution import nodes as k
from pullback.attribution.hierarchical import Gate, circuit_of
from pullback.attribution.hierarchical.gates import gated
from pullback.lens import as_lens
from tests import models
from tests.attribution.test_identities import _dense, tokens_of

SITE = "blocks.0.hook_mlp_out"
LEAVES = (k.EMBEDDING, k.POSITION, k.ERROR, k.BIAS, k.OWN)


def authors() -> Graph:
    """x = 1; x += m1 @ [1, 1] with m1 = x @ [1, 2]; x += m2 @ [2, 1] with m2 = x @ [1, 1]: x is 16."""
    kinds = [k.EMBEDDING, k.FEATURE, k.FEATURE, k.FEATURE, k.FEATURE, k.DIRECTION]
    edges = [(1, 0, 1), (2, 0, 2)]
    edges += [(t, s, w) for t in (3, 4) for s, w in ((0, 1), (1, 1), (2, 2))]
    edges += [(5, 0, 1), (5, 1, 1), (5, 2, 2), (5, 3, 8), (5, 4, 4)]
    pre = torch.tensor([math.nan, 1, 2, 4, 4, 16], dtype=torch.float64)
    counts = torch.bincount(torch.tensor([t for t, _, _ in edges]), minlength=6)
    nodes = k.Nodes(
        torch.tensor(kinds, dtype=torch.int8),
        torch.tensor([-1, 0, 0, 1, 1, 2], dtype=torch.int32),
        torch.zeros(6, dtype=torch.int32),
        torch.tensor([0, 0, 1, 0, 1, 0]),
        pre.nan_to_num(1.0),
        pre,
    )
    return Graph(
        nodes,
        torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]),
        torch.tensor([s for _, s, _ in edges], dtype=torch.int32),
        torch.tensor([w for *_, w in edges], dtype=torch.float64),
        torch.zeros(6, dtype=torch.float64),
        given_weights=torch.tensor([0, 0, 0, 0, 0, 1.0], dtype=torch.float64),
    )


def at(graph: Graph, target: int) -> Tensor:
    """One node's value, at its place."""
    start = torch.zeros(graph.n_nodes, dtype=torch.float64)
    start[target] = float(graph.nodes.preactivation[target])
    return start


@pytest.mark.parametrize(
    ("tau", "features", "leaf"), [(-math.inf, [4, 8, 8, 4], 16), (0.1, [4, 8, 8, 4], 16), (5, [0, 6, 8, 0], 9)]
)
def test_the_authors_example(tau: float, features: list[float], leaf: float) -> None:
    found, through = gated(authors(), at(authors(), 5), Gate(tau))
    assert found[1:5].tolist() == features
    assert float(through[0]) == leaf
    assert circuit_of(authors(), gate=Gate(tau)).recovery == leaf / 16


def test_the_authors_direct_attribution() -> None:
    assert authors().total_effects([5]).direct[0, 1:5].tolist() == [1, 2, 8, 4]


def by_autograd(graph: Graph, target: int, tau: float) -> Tensor:
    """Nodes as tensors, gates as hooks on them, and one backward pass; leaves are not gated."""
    A, explained = _dense(graph), graph.indptr.diff() > 0
    value = graph.nodes.preactivation.nan_to_num(1.0)
    made: dict[int, Tensor] = {}
    for n in sorted(range(graph.n_nodes), key=lambda n: (bool(explained[n]), int(graph.nodes.layer[n]))):
        read = [m for m in range(graph.n_nodes) if float(A[n, m]) != 0]
        if not bool(explained[n]):
            made[n] = value[n].clone().requires_grad_()
            continue
        a = sum((A[n, m] / value[m] * made[m] for m in read), torch.zeros((), dtype=A.dtype))
        made[n] = a + float(graph.dropped[n])
        made[n].retain_grad()
        if n != target:
            v = float(value[n])
            made[n].register_hook(lambda g, v=v: torch.where(v * g > tau, g, torch.zeros_like(g)))
    made[target].backward()
    grads = [made[n].grad for n in range(graph.n_nodes)]
    return torch.stack([value[n] * g if g is not None else value[n] * 0 for n, g in enumerate(grads)])


@pytest.mark.parametrize("tau", [-math.inf, 0.0, 0.02])
@pytest.mark.parametrize("name", ["LN-gqa-standard-plain", "neox-parallel"])
def test_one_pass_equals_gates_in_autograd(name: str, tau: float) -> None:
    lens = as_lens(models.build(name))
    graph = pb.attribute(lens, models.random_set(lens), tokens_of(5), attribution_targets=4)
    target = int(graph.explained.nonzero()[0])
    _, through = gated(graph, at(graph, target), Gate(tau))
    assert torch.allclose(through, by_autograd(graph, target, tau), rtol=1e-9, atol=1e-12)


def test_without_a_gate_leaves_sum_to_the_target_and_all_effects_are_found() -> None:
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    found = pb.hierarchical(lens, models.random_set(lens), tokens_of(5), 4, tau=-math.inf)
    assert found.recovery == pytest.approx(1, abs=1e-10)
    assert torch.allclose(found.attribution, found.whole.total_effects().total[0], rtol=1e-9, atol=1e-12)
    assert found.graph.check() <= 1e-9


def test_modes_thresholds_and_counts() -> None:
    attribution = torch.tensor([3.0, -5.0, 0.2])
    assert Gate(1).keeps(attribution, SITE, 10).tolist() == [True, False, False]
    assert Gate(1, "abs").keeps(attribution, SITE, 10).tolist() == [True, True, False]
    assert Gate(0.4, "abs", relative=True).keeps(attribution, SITE, -10).tolist() == [False, True, False]
    assert Gate({0: 4.0}).keeps(attribution, SITE, 10).tolist() == [False] * 3
    assert Gate({0: 4.0, SITE: -9.0}).keeps(attribution, SITE, 10).tolist() == [True] * 3, "the site goes first"
    assert Gate({0: 4.0}).keeps(attribution, "hook_embed", 10).tolist() == [True] * 3
    assert Gate({1: 4.0}).keeps(attribution, SITE, 10).tolist() == [True] * 3
    assert Gate(top=1).keeps(attribution, SITE, 10).tolist() == [True, False, False]
    with pytest.raises(ValueError, match="mode must be"):
        Gate(mode="both")
    for threshold in ({"tau": 0.2}, {"relative": True}, {"tau": {0: 4.0}}):
        with pytest.raises(ValueError, match="by number, tau and relative by size; give one or the other"):
            Gate(top=1, **threshold)
