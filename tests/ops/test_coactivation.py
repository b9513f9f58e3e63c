"""Sums over pairs of features: against dense products, however the rows come, and as expected attributions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pullback import _C, ops
from pullback.ops import Coactivation, PairSums, SparseActivations
from pullback.ops.cpu.borrow import view
from pullback.ops.reference.attribution import coactivation as reference
from tests.ops.cases import FLOATS, pattern

F64 = torch.float64


def dense(sums: PairSums, F_b: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Products, gated, and which pairs are held."""
    pairs = SparseActivations(sums.indptr, sums.indices, torch.ones(len(sums.indices)), F_b)
    index = pairs.rows(), sums.indices.long()
    zeros = torch.zeros(len(sums.indptr) - 1, F_b, dtype=F64)
    return zeros.index_put(index, sums.products), zeros.index_put(index, sums.gated), pairs.to_dense() > 0


def assert_sums(got: PairSums, a: SparseActivations, b: SparseActivations) -> None:
    products, gated, met = dense(got, b.n_features)
    expected = reference(a, b)
    torch.testing.assert_close(products, expected[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gated, expected[1], rtol=1e-12, atol=1e-12)
    assert torch.equal(met, expected[2])


@given(
    n=st.integers(0, 9),
    F_a=st.sampled_from([1, 2, 63, 64, 65, 200]),
    F_b=st.sampled_from([1, 5, 64, 65, 4095, 4097, 9000]),
    most=st.integers(0, 9),
    dtypes=st.tuples(st.sampled_from(FLOATS), st.sampled_from([*FLOATS, torch.bfloat16])),
    cuts=st.lists(st.integers(0, 9), max_size=4),
    seed=st.integers(0, 2**16),
)
def test_streams_like_one_batch(
    n: int, F_a: int, F_b: int, most: int, dtypes: tuple, cuts: list[int], seed: int
) -> None:
    a, b = pattern(n, F_a, most, dtypes[0], seed), pattern(n, F_b, most, dtypes[1], seed + 1)
    sums = Coactivation(F_a, F_b)
    bounds = [0, *sorted(min(c, n) for c in cuts), n]
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        sums.add(a[start:stop], b[start:stop])
    assert_sums(sums.to_csr(), a, b)
    assert sums.count == n
    torch.testing.assert_close(sums.sums_a, a.to_dense().double().sum(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sums.mean_b * max(1, n), b.to_dense().double().sum(0), rtol=1e-12, atol=1e-12)
    csr = sums.to_csr()
    SparseActivations(csr.indptr, csr.indices, torch.ones(len(csr.indices)), F_b).validate()
    with ops.use_backend("reference"):
        assert_sums(Coactivation(F_a, F_b).add(a, b).to_csr(), a, b)


@given(n=st.integers(0, 9), F=st.sampled_from([1, 5, 70]), r=st.integers(1, 5), seed=st.integers(0, 2**16))
def test_chosen_rows_are_a_block(n: int, F: int, r: int, seed: int) -> None:
    a, b = pattern(n, F, 9, torch.float32, seed), pattern(n, 40, 9, torch.float32, seed + 1)
    ids = torch.randperm(F, generator=torch.Generator().manual_seed(seed))[:r]
    products, gated, _ = reference(a, b)
    sums = Coactivation(F, 40, rows=ids).add(a[: n // 2], b[: n // 2]).add(a[n // 2 :], b[n // 2 :])
    torch.testing.assert_close(sums.block()[0], products[ids], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sums.block()[1], gated[ids], rtol=1e-12, atol=1e-12)
    with ops.use_backend("reference"):
        again = Coactivation(F, 40, rows=ids.tolist()).add(a, b)
    torch.testing.assert_close(sums.block(), again.block(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sums.merge(again).block()[0], 2 * products[ids], rtol=1e-12, atol=1e-12)
    assert sums.count == 2 * n


def test_merge_is_addition() -> None:
    parts = [pattern(5, 30, 9, torch.float32, seed) for seed in range(6)]
    left, right, both = Coactivation(30), Coactivation(30), Coactivation(30)
    for i, part in enumerate(parts):
        (left if i < 3 else right).add(part)
        both.add(part)
    before = right.to_csr()
    left.merge(right)
    for got, expected in zip(left.to_csr(), both.to_csr(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(left.sums_a, both.sums_a)
    assert left.count == both.count == 30
    assert all(torch.equal(x, y) for x, y in zip(right.to_csr(), before, strict=True))


def test_bits_do_not_depend_on_threads() -> None:
    a, b = pattern(400, 300, 40, torch.float32, seed=1), pattern(400, 500, 40, torch.float32, seed=2)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            sparse = Coactivation(300, 500).add(a, b).add(a, b).to_csr()
            block = Coactivation(300, 500, rows=range(50)).add(a, b).block()
            results.append([*sparse, *block])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_sums_are_float64() -> None:
    """Ten thousand times a third: a float32 sum is off in the fifth digit."""
    a = SparseActivations.from_dense(torch.full((10_000, 1), 1 / 3))
    third = float(torch.tensor(1 / 3))
    assert float(Coactivation(1).add(a).to_csr().products) == pytest.approx(10_000 * third**2, rel=1e-12)


@pytest.mark.parametrize("rows", [None, [2, 0]], ids=["pairs", "block"])
def test_a_state_stays_what_it_was(rows: list[int] | None) -> None:
    a = pattern(6, 3, 2, torch.float32, seed=0)
    sums = Coactivation(3, rows=rows).add(a)
    state = sums.state_dict()
    before = {name: part.clone() for name, part in state.items()}
    sums.add(a)
    assert all(torch.equal(part, before[name]) for name, part in state.items())


def test_expected_attributions() -> None:
    """METHODS 3.3: with a constant source TWERA is a_i V; with a binary target ERA = P(b_j > 0) TWERA; two features
    that never meet have none, whatever V."""
    g = torch.Generator().manual_seed(0)
    b = (torch.rand(200, 3, generator=g) < 0.3).double()
    a = torch.cat([torch.full((200, 1), 2.5), 1 - b[:, :1], torch.rand(200, 1, generator=g)], 1).double()
    sums = Coactivation(3).add(SparseActivations.from_dense(a), SparseActivations.from_dense(b))
    products, gated, met = dense(sums.to_csr(), 3)
    twera, era = products / sums.sums_b, gated / sums.count
    torch.testing.assert_close(twera[0], torch.full((3,), 2.5, dtype=F64))
    torch.testing.assert_close(era, b.mean(0) * twera)
    assert twera[1, 0] == 0
    assert not met[1, 0]


def test_gating_is_by_positive_values() -> None:
    a = SparseActivations.from_dense(torch.tensor([[2.0], [3.0], [5.0]]))
    b = SparseActivations.from_dense(torch.tensor([[1.0, -1], [-4, -1], [0.5, 0]]))
    sums = Coactivation(1, 2).add(a, b).to_csr()
    assert sums.products.tolist() == [2 - 12 + 2.5, -5]
    assert sums.gated.tolist() == [7, 0]


def test_top_pairs() -> None:
    h = torch.tensor([[1.0, 2, 0, 0], [0, 0, 2, 1], [0, 0, 0, 3]])
    acts = SparseActivations.from_dense(h)
    products, i, j = Coactivation(4).add(acts).top(4)
    assert (products.tolist(), i.tolist(), j.tolist()) == ([10, 4, 4, 2], [3, 1, 2, 0], [3, 1, 2, 1])
    assert len(Coactivation(4).add(acts).top(99)[0]) == 8
    assert [len(t) for t in Coactivation(4).top(3)] == [0, 0, 0]
    products, i, j = Coactivation(4, rows=[2, 1]).add(acts).top(3)
    assert (products.tolist(), i.tolist(), j.tolist()) == ([4, 4, 2], [2, 1, 2], [2, 1, 3])


def test_memory_follows_the_pairs_that_met() -> None:
    """Two features out of a million: four pairs, not 2^40; and twenty batches of them are still four."""
    F = 1 << 20
    acts = SparseActivations(torch.tensor([0, 2]), torch.tensor([5, F - 1], dtype=torch.int32), torch.ones(2), F)
    sums = Coactivation(F)
    for _ in range(20):
        sums.add(acts)
    assert len(sums._sums.parts) == 1
    products, i, j = sums.top(9)
    assert products.tolist() == [20] * 4
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == [(5, 5), (5, F - 1), (F - 1, 5), (F - 1, F - 1)]


def test_what_does_not_fit_is_named() -> None:
    acts, sums = pattern(3, 10, 4, torch.float32, seed=0), Coactivation(10)
    bad = SparseActivations(torch.tensor([0, 1]), torch.tensor([10], dtype=torch.int32), torch.ones(1), 10)
    cases = [
        (
            lambda: sums.add(acts[:2], acts),
            r"\[n, F_a\]=\[n, 10\] and \[n, F_b\]=\[n, 10\], got \[2, 10\] and \[3, 10\]",
        ),
        (lambda: sums.add(pattern(3, 9, 4, torch.float32, seed=0)), r"got \[3, 9\]"),
        (lambda: sums.add(bad), "feature id 10 at entry 0 is not in 0..F-1=9"),
        (lambda: Coactivation(10, rows=[1]).add(bad), "feature id 10 is not in 0..9"),
        (lambda: sums.merge(Coactivation(10, rows=[1])), "count different features"),
        (lambda: sums.block(), "use to_csr"),
        (lambda: Coactivation(10, rows=[1]).to_csr(), r"use block\(\)"),
        (lambda: Coactivation(0), "must be in 1.."),
        (lambda: Coactivation(10, rows=[1, 1]), "different feature ids in 0..9"),
        (lambda: Coactivation(10, rows=[10]), "different feature ids in 0..9"),
        (lambda: sums.top(0), "k must be at least 1"),
    ]
    for call, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            call()
    assert (sums.count, float(sums.sums_a.sum())) == (0, 0)


def test_the_module_does_not_trust_the_counts() -> None:
    """Too little room is an error, not a write beyond it."""
    acts = pattern(9, 10, 9, torch.float32, seed=3)
    A = [view(t) for t in (acts.indptr, acts.indices, acts.values)]
    for counted in (1, 30):
        indptr = torch.arange(11) * counted
        n = int(indptr[-1])
        guard = torch.full((3, n + 16), -7.0, dtype=F64)
        ids = torch.full((n + 16,), -7, dtype=torch.int32)
        room = view(indptr), view(ids[:n]), view(guard[0, :n]), view(guard[1, :n])
        with pytest.raises(ValueError, match="does not count the pairs of feature"):
            _C.coactivation_sums(*A, *A, *room, 10)
        assert bool((guard[:, n:] == -7).all())
        assert bool((ids[n:] == -7).all())
