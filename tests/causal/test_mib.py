"""The arithmetic of circuit figures."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pullback._util.statistics import ranks, spearman
from pullback.causal import mib


def test_areas_of_known_curves() -> None:
    """METHODS 5.8."""
    sizes = mib.SIZES
    one, identity, late = [1.0] * 10, list(sizes), [0.0] * 9 + [1.0]
    assert mib.cpr(sizes, one) == pytest.approx(0.999, abs=1e-12)
    assert mib.cmd(sizes, one) == 0
    assert mib.cpr(sizes, identity) == pytest.approx(0.4999995, abs=1e-12)
    assert mib.cmd(sizes, identity) == pytest.approx(0.4990005, abs=1e-12)
    assert mib.cpr(sizes, late) == pytest.approx(0.25, abs=1e-12)
    assert mib.cmd(sizes, [2.0] * 10) == mib.cmd(sizes, [0.0] * 10), "too much is as far off as too little"
    for bad in ((sizes[:1], one[:1]), (sizes, one[:3]), (sizes[::-1], one)):
        with pytest.raises(ValueError, match="two or more ascending sizes"):
            mib.cpr(*bad)


def test_what_is_nan_has_no_rank() -> None:
    with pytest.raises(ValueError, match="some scores are NaN"):
        mib.auroc(torch.tensor([1.0, torch.nan]), torch.tensor([True, False]))


def test_faithfulness() -> None:
    assert mib.faithfulness(2.0, 3.0, 1.0) == 0.5
    assert mib.faithfulness(-1.0, -1.0, 1.0) == 1.0
    with pytest.raises(ValueError, match="the measure is 2.0 with every node and with none"):
        mib.faithfulness(1.0, 2.0, 2.0)


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=20))
def test_auroc_counts_pairs(items: list[tuple[int, bool]]) -> None:
    scores = torch.tensor([float(s) for s, _ in items])
    truth = torch.tensor([t for _, t in items])
    if not 0 < int(truth.sum()) < len(items):
        with pytest.raises(ValueError, match="both values in it"):
            mib.auroc(scores, truth)
        return
    pairs = [(a > b) + 0.5 * (a == b) for a, t in items if t for b, u in items if not u]
    assert mib.auroc(scores, truth) == pytest.approx(sum(pairs) / len(pairs))


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=30))
def test_ranks_count_what_lies_below(values: list[int]) -> None:
    expected = [sum(w < v for w in values) + (sum(w == v for w in values) - 1) / 2 for v in values]
    assert ranks(torch.tensor(values)).tolist() == expected


def test_spearman() -> None:
    a = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    assert spearman(a, a.exp()) == pytest.approx(1)
    assert spearman(a, -a) == pytest.approx(-1)
    # Without ties 1 - 6 sum d^2 / (n (n^2 - 1)); d = 1, -1, 0, 1, -1.
    assert spearman(a, torch.tensor([2.0, 1.0, 3.0, 5.0, 4.0])) == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert spearman(a, torch.ones(5)) != spearman(a, torch.ones(5)), "nan"
    with pytest.raises(ValueError, match=r"two vectors of one length, got \[5\] and \[4\]"):
        spearman(a, a[:4])
