"""The best few and the histograms of a stream, against all of it at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pullback.interpret.features.best import Best, Examples
from pullback.interpret.features.contexts import Contexts
from pullback.interpret.features.histogram import Histograms
from pullback.interpret.features.layer import LayerActivity, strongest
from pullback.ops import SparseActivations


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 6))
def test_best_of_a_stream(seed: int, k: int, batches: int) -> None:
    """Few priorities, so that there are ties: the earlier stays."""
    rng = np.random.default_rng(seed)
    best, every = Best(5, k, 1), {f: [] for f in range(5)}
    number = 0
    for _ in range(batches):
        n = int(rng.integers(0, 12))
        features = torch.from_numpy(rng.integers(0, 5, n))
        contexts = torch.arange(number, number + n)
        values = torch.from_numpy(rng.integers(-3, 4, n)).float()
        number += n
        for f, c, v in zip(features.tolist(), contexts.tolist(), values.tolist(), strict=True):
            every[f].append((-v, c))
        which, feature, slot = best.offer(Examples(features, contexts, contexts + 1, values), values)
        best.around[feature, slot, 0] = contexts[which].float()
    for f, all_of_it in every.items():
        expected = sorted(all_of_it)[:k]
        there = best.contexts[f] >= 0
        found = sorted(zip((-best.values[f][there]).tolist(), best.contexts[f][there].tolist(), strict=True))
        assert found == expected
        assert torch.equal(best.positions[f][there], best.contexts[f][there] + 1)
        assert torch.equal(best.around[f, there, 0], best.contexts[f][there].float()), "what goes with an example stays"


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from([2, 8, 64]))
def test_histograms_count_exactly(seed: int, bins: int) -> None:
    rng = np.random.default_rng(seed)
    histograms, every = Histograms(3, bins), []
    for _ in range(4):
        features = torch.from_numpy(rng.integers(0, 2, 30))
        values = torch.from_numpy(rng.lognormal(0, 3, 30)).float()
        histograms.add(features, values)
        every.append((features, values))
    features, values = map(torch.cat, zip(*every, strict=True))
    for f in range(2):
        own, width = values[features == f].double(), float(histograms.widths[f])
        expected = torch.bincount((own / width).long(), minlength=bins)
        assert torch.equal(histograms.counts[f], expected)
        assert own.max() < bins * width <= 4 * own.max()
    assert int(histograms.counts[2].sum()) == 0
    with pytest.raises(ValueError, match="must be even"):
        Histograms(1, 3)


def test_zeros_and_negatives_stand_in_the_first_bin() -> None:
    histograms = Histograms(1, 4)
    histograms.add(torch.tensor([0, 0]), torch.tensor([0.0, -2.0]))
    histograms.add(torch.tensor([0]), torch.tensor([1.0]))
    assert histograms.counts[0].sum() == 3
    assert int(histograms.counts[0, 0]) >= 2


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_what_is_not_finite_is_refused(value: float) -> None:
    """An infinite activation would widen the bins of a histogram for ever."""
    acts = SparseActivations.from_dense(torch.tensor([[1.0, 0], [0, 2], [0, value], [0, 0]]))
    activity, scored = LayerActivity(2, 1, 1, (1, 1)), torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="context 8 at position 0 is NaN or infinite"):
        activity.add(acts, scored, 7, torch.Generator())
    activity.add(acts, torch.tensor([[True, True], [False, True]]), 7, torch.Generator())


def test_strongest_of_a_context() -> None:
    found = strongest(
        torch.tensor([1, 1, 1, 0, 1]),
        torch.tensor([0, 0, 1, 1, 1]),
        torch.tensor([2, 3, 0, 1, 4]),
        torch.tensor([5.0, 5.0, 1.0, 2.0, 3.0]),
    )
    assert [column.tolist() for column in found] == [[0, 1, 1], [1, 0, 1], [1, 2, 4], [2.0, 5.0, 3.0]]


def test_contexts_are_forgotten() -> None:
    contexts = Contexts()
    assert contexts.add(torch.tensor([[1, 2], [3, 4]])) == 0
    assert contexts.add(torch.tensor([[5, 6, 7]])) == 2
    contexts.keep([torch.tensor([[2, -1]]), torch.tensor([0])])
    numbers, tokens = contexts.table()
    assert numbers.tolist() == [0, 2]
    assert tokens.tolist() == [[1, 2, -1], [5, 6, 7]]
