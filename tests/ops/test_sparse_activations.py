"""The sparse type: round trips, rows, slices, and what it refuses."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pullback.ops import SparseActivations, topk_select
from tests.ops.cases import ROWS, pattern, rows, shapes


def same(a: SparseActivations, b: SparseActivations) -> bool:
    return (
        torch.equal(a.indptr, b.indptr)
        and torch.equal(a.indices, b.indices)
        and torch.equal(a.values.nan_to_num(7.5), b.values.nan_to_num(7.5))
        and a.n_features == b.n_features
    )


@given(shape=shapes)
def test_dense_round_trip(shape: dict) -> None:
    acts = pattern(shape["n"], shape["F"], shape["most"], torch.float32, shape["seed"]).validate()
    dense = acts.to_dense()
    assert dense.shape == acts.shape == (acts.n_rows, acts.n_features)
    assert same(SparseActivations.from_dense(dense).validate(), acts)
    for n in range(acts.n_rows):
        indices, values = acts.row(n)
        assert torch.equal(dense[n, indices.long()], values)
        assert int((acts.rows() == n).sum()) == len(indices)


@given(shape=shapes, start=st.integers(-9, 9), stop=st.integers(-9, 9))
def test_slices_are_those_of_the_dense_matrix(shape: dict, start: int, stop: int) -> None:
    acts = pattern(shape["n"], shape["F"], shape["most"], torch.float32, shape["seed"])
    assert torch.equal(acts[start:stop].validate().to_dense(), acts.to_dense()[start:stop])
    assert same(acts[:], acts)


@given(shape=shapes)
def test_where_is_masking_the_dense_matrix(shape: dict) -> None:
    acts = pattern(shape["n"], shape["F"], shape["most"], torch.float32, shape["seed"])
    keep = torch.rand(acts.nnz, generator=torch.Generator().manual_seed(shape["seed"])) > 0.5
    expected = acts.to_dense()
    expected[acts.rows()[~keep], acts.indices[~keep].long()] = 0
    assert torch.equal(acts.where(keep).validate().to_dense(), expected)
    with pytest.raises(ValueError, match=r"keep must be torch.bool \[nnz\]"):
        acts.where(torch.ones(acts.nnz + 1, dtype=torch.bool))


@pytest.mark.parametrize("kind", ROWS)
def test_from_topk_drops_zeros_and_keeps_nan(kind: str) -> None:
    h = rows(kind, 4, 50, torch.float64)
    values, indices = topk_select(h, 8)
    acts = SparseActivations.from_topk(values, indices, 50).validate()
    assert acts.nnz == int((values != 0).sum())
    expected = torch.zeros_like(h).scatter(1, indices.long(), values)
    assert torch.equal(acts.to_dense().nan_to_num(7.5), expected.nan_to_num(7.5))


def test_from_topk_sorts() -> None:
    acts = SparseActivations.from_topk(torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[5, 3, 4]]), 6).validate()
    assert acts.indices.tolist() == [3, 5]
    assert acts.values.tolist() == [2, 1]


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_split_gives_slices(n: int) -> None:
    acts = pattern(6, 9, 4, torch.float32, seed=3)
    parts = acts.split(n)
    assert len(parts) == 6 // n
    for i, part in enumerate(parts):
        own = acts[i * n : (i + 1) * n]
        assert torch.equal(part.validate().indptr, own.indptr)
        assert torch.equal(part.indices, own.indices)
        assert torch.equal(part.values, own.values)
        assert part.n_features == own.n_features


def test_split_refuses_parts_that_do_not_come_out_even() -> None:
    acts = pattern(6, 9, 4, torch.float32, seed=3)
    for n in (0, 4, 7, -1):
        with pytest.raises(ValueError, match="split: n must divide the 6 rows"):
            acts.split(n)
    assert acts[0:0].split(3) == []


@pytest.mark.parametrize("count", range(9))
def test_largest_counts_nan_before_everything_and_never_gives_more(count: int) -> None:
    inf, nan = float("inf"), float("nan")
    h = torch.tensor([[1.0, nan, inf, -inf], [nan, 2.0, nan, inf]])
    order = h.flatten().sort(descending=True, stable=True).indices[:count].sort().values
    kept = SparseActivations.from_dense(h).largest(count).validate()
    assert torch.equal(kept.rows() * 4 + kept.indices, order)
    torch.testing.assert_close(kept.values, h.flatten()[order], rtol=0, atol=0, equal_nan=True)


def test_conversions_carry_gradients() -> None:
    h = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, -3.0]], requires_grad=True)
    SparseActivations.from_dense(h).to_dense().square().sum().backward()
    assert torch.equal(h.grad, 2 * h)
    assert SparseActivations.from_dense(h).values.requires_grad
    assert not SparseActivations.from_dense(h).detach().values.requires_grad


def test_to_changes_the_values_only() -> None:
    acts = pattern(3, 9, 4, torch.float32, seed=2)
    wide = acts.to(dtype=torch.float64)
    assert wide.dtype == torch.float64
    assert wide.indptr.dtype == torch.int64
    assert wide.indices.dtype == torch.int32
    assert acts.to("meta").device.type == "meta"
    assert "3 rows x 9 features" in repr(acts)


def test_it_is_frozen() -> None:
    acts = pattern(3, 9, 4, torch.float32, seed=2)
    with pytest.raises(FrozenInstanceError):
        acts.n_features = 3  # type: ignore[misc]


def make(indptr: list[int], indices: list[int], values: list[float], n_features: int = 5) -> SparseActivations:
    return SparseActivations(
        torch.tensor(indptr), torch.tensor(indices, dtype=torch.int32), torch.tensor(values), n_features
    )


def test_validate_names_the_first_offence() -> None:
    cases = [
        (make([0, 1, 3], [0, 1], [1.0, 1.0]), "indptr must run from 0 to nnz=2, got 0 to 3"),
        (make([0, 2, 1, 2], [0, 1], [1.0, 1.0]), "indptr decreases after row 1"),
        (make([0, 2], [0, 5], [1.0, 1.0]), "feature id 5 is not in 0..4"),
        (make([0, 2], [0, -1], [1.0, 1.0]), "feature id -1 is not in 0..4"),
        (make([0, 1, 3], [3, 2, 2], [1.0, 1.0, 1.0]), "ids of row 1 do not ascend"),
        (make([0, 1, 3], [3, 1, 2], [1.0, 1.0, 0.0]), "row 1 stores a zero"),
    ]
    for acts, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            acts.validate()
    make([0, 0], [], []).validate()


def test_the_constructor_refuses_wrong_types_and_shapes() -> None:
    indptr, indices, values = torch.tensor([0, 1]), torch.tensor([0], dtype=torch.int32), torch.ones(1)
    for args, sentence in [
        ((indptr.int(), indices, values, 5), "indptr must be int64"),
        ((indptr[:0], indices, values, 5), "indptr must be int64"),
        ((indptr, indices.long(), values, 5), "indices must be int32"),
        ((indptr, indices, torch.ones(2), 5), r"values must be floating point \[nnz\]=\[1\]"),
        ((indptr, indices, torch.ones(1).int(), 5), "values must be floating point"),
        ((indptr, indices, values, 0), "n_features must be in 1.."),
        ((indptr, indices, values, 2**31), "n_features must be in 1.."),
    ]:
        with pytest.raises(ValueError, match=sentence):
            SparseActivations(*args)
    acts = SparseActivations(indptr, indices, values, 5)
    with pytest.raises(ValueError, match="step 1"):
        acts[::2]
    with pytest.raises(TypeError, match="row\\(n\\)"):
        acts[0]  # type: ignore[index]
    with pytest.raises(IndexError, match="row 1 of 1"):
        acts.row(1)
    with pytest.raises(ValueError, match=r"must both be \[n, k\]"):
        SparseActivations.from_topk(values, indices, 5)
