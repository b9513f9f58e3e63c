"""Standard attribution beside the hierarchical one: all paths, cut afterwards."""

from __future__ import annotations

import math

import pytest
import torch

import pullback as pb
from pullback.attribution import nodes as k
from pullback.attribution.hierarchical import Gate, circuit_of
from pullback.lens import as_lens
from tests import models
from tests.attribution.hierarchical.test_gates import authors
from tests.attribution.test_identities import _dense, tokens_of


def test_the_authors_example() -> None:
    """Standard attributions are 4, 8, 8, 4 and stay so; what two kept nodes bring is 9 either way."""
    standard, hierarchical = (circuit_of(authors(), gate=Gate(5), standard=choice) for choice in (True, False))
    assert standard.attribution[1:5].tolist() == [0, 8, 8, 0]
    assert hierarchical.attribution[1:5].tolist() == [0, 6, 8, 0]
    assert standard.recovery == hierarchical.recovery == 9 / 16


@pytest.mark.parametrize("mode", ["signed", "abs"])
@pytest.mark.parametrize("with_saes", [False, True])
def test_it_is_total_effects_cut_and_what_comes_through_them(mode: str, with_saes: bool) -> None:
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    also = {"attention_saes": models.random_saes(lens, layers=[1])} if with_saes else {}
    found = pb.hierarchical(
        lens, models.random_set(lens), tokens_of(5), 4, tau=0.1, mode=mode, relative=True, standard=True, **also
    )
    graph, t = found.whole, found.target
    total, value = graph.total_effects().total[0], float(graph.nodes.preactivation[t])
    own = graph.nodes.kind == k.OWN
    size = total.abs() if mode == "abs" else total
    expected = (size > 0.1 * abs(value)) | (torch.arange(graph.n_nodes) == t)
    expected[own] = expected[graph.nodes.feature[own]]
    assert torch.equal(found.kept, expected)
    assert torch.allclose(found.attribution, torch.where(expected, total, 0), atol=1e-12)
    # Paths through kept nodes: from leaves of any size, by the inverse of what is left of the edges.
    leaf = graph.indptr.diff() == 0
    inside = expected | (leaf & ~own)
    shares = (
        torch.where(inside[:, None] & inside, _dense(graph), 0) / graph.nodes.preactivation.nan_to_num(1.0)[:, None]
    )
    paths = torch.linalg.inv(torch.eye(graph.n_nodes, dtype=torch.float64) - shares)
    assert found.recovery == pytest.approx(float(paths[t, inside & leaf].sum()), abs=1e-9)
    assert found.graph.check() <= 1e-9


def test_without_a_threshold_both_are_the_same() -> None:
    lens = as_lens(models.build("neox-parallel"))
    graph = pb.attribute(lens, models.random_set(lens), tokens_of(5), attribution_targets=4)
    ours, theirs = (circuit_of(graph, gate=Gate(-math.inf), standard=choice) for choice in (True, False))
    assert torch.equal(ours.attribution, theirs.attribution)
    assert ours.recovery == pytest.approx(theirs.recovery, abs=1e-12)
    few = circuit_of(graph, gate=Gate(top=2), standard=True)
    assert int(few.graph.of_kind(k.FEATURE).sum()) <= 2 * 3
