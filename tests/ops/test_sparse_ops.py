"""Decode, sampled dot, segment sum and contraction against float64, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pullback import ops
from pullback.ops import SparseActivations, reference
from tests.ops.cases import FLOATS, assert_sums, pattern, shapes

dtypes = st.sampled_from(FLOATS)


def random(seed: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@given(shape=shapes, dtype=dtypes, bias=st.booleans())
def test_decode(isa: str, shape: dict, dtype: torch.dtype, bias: bool) -> None:
    F, d, seed = shape["F"], shape["d"], shape["seed"]
    acts = pattern(shape["n"], F, shape["most"], dtype, seed)
    W, b = random(seed, F, d, dtype=dtype), random(seed + 1, d, dtype=dtype) if bias else None

    def sums(v: torch.Tensor, W: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
        return reference.decode_csr(
            acts.indptr, acts.indices, v.double(), W.double(), None if b is None else b.double()
        )

    expected, magnitude = sums(acts.values, W, b), sums(acts.values.abs(), W.abs(), None if b is None else b.abs())
    got = ops.decode_csr(acts, W, b)
    assert got.dtype == dtype
    assert_sums(got, expected, magnitude, shape["most"] + 1)


@pytest.mark.parametrize("ids", [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int64], ids=str)
def test_ids_of_any_integer_dtype(ids: torch.dtype) -> None:
    values, W, indices = torch.randn(3, 2), torch.randn(5, 4), torch.tensor([[0, 4], [2, 1], [3, 3]])
    assert torch.equal(ops.decode_topk(values, indices.to(ids), W), ops.decode_topk(values, indices.int(), W))


@given(shape=shapes, dtype=dtypes, k=st.integers(1, 6), wide=st.booleans())
def test_decode_topk(isa: str, shape: dict, dtype: torch.dtype, k: int, wide: bool) -> None:
    n, F, d, seed = shape["n"], shape["F"], shape["d"], shape["seed"]
    indices = torch.randint(F, (n, k), generator=torch.Generator().manual_seed(seed))
    indices = indices if wide else indices.int()
    values, W = random(seed, n, k, dtype=dtype), random(seed + 1, F, d, dtype=dtype)
    rows = W.double()[indices.long()]
    expected = (values.double()[:, :, None] * rows).sum(1)
    magnitude = (values.double().abs()[:, :, None] * rows.abs()).sum(1)
    assert_sums(ops.decode_topk(values, indices, W), expected, magnitude, k)


@given(shape=shapes, dtype=dtypes)
def test_sampled_dot(isa: str, shape: dict, dtype: torch.dtype) -> None:
    n, F, d, seed = shape["n"], shape["F"], shape["d"], shape["seed"]
    acts = pattern(n, F, shape["most"], dtype, seed)
    g, W = random(seed, n, d, dtype=dtype), random(seed + 1, F, d, dtype=dtype)
    expected = reference.sampled_dot(g.double(), W.double(), acts.indptr, acts.indices)
    magnitude = reference.sampled_dot(g.double().abs(), W.double().abs(), acts.indptr, acts.indices)
    assert_sums(ops.sampled_dot(g, W, acts.indptr, acts.indices), expected, magnitude, d)


@given(shape=shapes, dtype=dtypes)
def test_segment_outer(isa: str, shape: dict, dtype: torch.dtype) -> None:
    n, F, d, seed = shape["n"], shape["F"], shape["d"], shape["seed"]
    acts = pattern(n, F, shape["most"], dtype, seed)
    x = random(seed, n, d, dtype=dtype)
    args = acts.indptr, acts.indices
    expected = reference.segment_outer(*args, acts.values.double(), x.double(), F)
    magnitude = reference.segment_outer(*args, acts.values.double().abs(), x.double().abs(), F)
    assert_sums(ops.segment_outer(*args, acts.values, x, F), expected, magnitude, n)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_gradient_that_no_cache_holds(isa: str, dtype: torch.dtype) -> None:
    """Written past the caches, a feature has the bits it has in a small result; one may have many entries or none."""
    n, d, few, F = 70, 64, 50, 2**18 // torch.finfo(dtype).bits * 16 + 3
    ids = torch.cat([torch.full((n, 1), 7), torch.randint(8, few, (n, 2)), torch.full((n, 1), F - 1)], 1)
    values, x = random(1, n, 4, dtype=dtype), random(2, n, d, dtype=dtype)

    def outer(columns: slice, n_features: int) -> torch.Tensor:
        chosen = ids[:, columns]
        indptr = torch.arange(n + 1) * chosen.shape[1]
        return ops.segment_outer(indptr, chosen.flatten(), values[:, columns].flatten(), x, n_features)

    large, small = outer(slice(None), F), outer(slice(3), few)
    assert large.nbytes > 2**25
    assert torch.equal(large[:few], small)
    assert_sums(large[-1], values[:, 3].double() @ x.double(), values[:, 3].double().abs() @ x.double().abs(), n)
    assert not large[few:-1].any()


@given(shape=shapes, dtype=dtypes, B=st.integers(0, 9))
def test_contract(isa: str, shape: dict, dtype: torch.dtype, B: int) -> None:
    P, F, d, seed = shape["n"], shape["F"], shape["d"], shape["seed"]
    acts = pattern(P, F, shape["most"], dtype, seed)
    G, W = random(seed, B, P, d, dtype=dtype), random(seed + 1, F, d, dtype=dtype)
    args = acts.indptr, acts.indices
    expected = reference.contract(G.double(), *args, acts.values.double(), W.double())
    magnitude = reference.contract(G.double().abs(), *args, acts.values.double().abs(), W.double().abs())
    assert_sums(ops.contract(G, acts, W), expected, magnitude, d + 1)


def test_many_entries_of_one_position(isa: str) -> None:
    """More entries and targets than a tile holds."""
    acts = pattern(2, 500, 400, torch.float64, seed=3)
    G, W = random(0, 150, 2, 20, dtype=torch.float64), random(1, 500, 20, dtype=torch.float64)
    expected = reference.contract(G, acts.indptr, acts.indices, acts.values, W)
    torch.testing.assert_close(ops.contract(G, acts, W), expected, rtol=1e-12, atol=1e-12)


def test_free_strides(isa: str) -> None:
    """Leading strides are free (a slice, a transpose, an expansion); a strided last dimension is copied."""
    acts = pattern(5, 40, 6, torch.float64, seed=1)
    args = acts.indptr, acts.indices
    big = random(2, 7, 9, 5, 24, dtype=torch.float64)
    W_views = [
        random(3, 40, 48, dtype=torch.float64)[:, :24],
        random(4, 24, 40, dtype=torch.float64).T,
        random(5, 1, 24, dtype=torch.float64).expand(40, -1),
        random(6, 40, 48, dtype=torch.float64)[:, ::2],
    ]
    G_views = [
        big[:, 2],
        big[2].transpose(0, 1).transpose(0, 1),
        big[0, :, :1].expand(-1, 5, -1),
        big.permute(1, 2, 0, 3)[:, :, 0],
        big.permute(0, 3, 2, 1)[:, :, :, 0].transpose(1, 2),
    ]
    for W in W_views:
        for G in G_views:
            torch.testing.assert_close(ops.contract(G, acts, W), reference.contract(G, *args, acts.values, W))
        torch.testing.assert_close(ops.decode_csr(acts, W), reference.decode_csr(*args, acts.values, W, None))
        g = big[0, 0]
        torch.testing.assert_close(ops.sampled_dot(g, W, *args), reference.sampled_dot(g, W, *args))
    for x in (big[0, 0], big[0, :5, 0], big[0, 0, 0].expand(5, -1), random(7, 24, 5, dtype=torch.float64).T):
        torch.testing.assert_close(
            ops.segment_outer(*args, acts.values, x, 40), reference.segment_outer(*args, acts.values, x, 40)
        )


def test_half_precision_is_computed_in_float32(isa: str) -> None:
    acts = pattern(5, 40, 6, torch.float32, seed=1)
    W = random(3, 40, 24, dtype=torch.bfloat16)
    got = ops.decode_csr(acts.to(dtype=torch.bfloat16), W)
    assert got.dtype == torch.float32
    assert torch.equal(got, ops.decode_csr(acts.to(dtype=torch.bfloat16).to(dtype=torch.float32), W.float()))
    assert ops.decode_csr(acts, W.double()).dtype == torch.float64


def test_nan_and_inf_pass_through(isa: str) -> None:
    W = torch.ones(4, 3)
    W[1, 0], W[2, 1] = torch.nan, torch.inf
    values, indices = torch.ones(3, 1), torch.tensor([[1], [2], [3]])
    out = ops.decode_topk(values, indices, W)
    assert out[0].isnan().tolist() == [True, False, False]
    assert out[1].isinf().tolist() == [False, True, False]
    assert out[2].tolist() == [1, 1, 1]


def test_rows_beyond_two_to_the_31(isa: str) -> None:
    """A decoder row that starts past 2^31 bytes, through a view over memory that is never touched in between."""
    base = torch.empty((1 << 29) + 64)
    W = base.as_strided((2, 64), (1 << 29, 1))
    W[0], W[1] = 1, 2
    out = ops.decode_topk(torch.ones(1, 2), torch.tensor([[0, 1]]), W)
    assert torch.equal(out, torch.full((1, 64), 3.0))


BAD = SparseActivations(torch.tensor([0, 1, 2]), torch.tensor([3, 9], dtype=torch.int32), torch.ones(2), 10)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_feature_ids_out_of_range_are_named(backend: str) -> None:
    W, x = torch.zeros(9, 4), torch.zeros(2, 4)
    with ops.use_backend(backend):
        with pytest.raises(ValueError, match="feature id 9 "):
            ops.segment_outer(BAD.indptr, BAD.indices, BAD.values, x, 9)
        with pytest.raises(ValueError, match="feature id 9 "):
            ops.sampled_dot(x, W, BAD.indptr, BAD.indices)
        with pytest.raises(ValueError, match="feature id 9 "):
            ops.decode_topk(torch.ones(1, 1), torch.tensor([[9]]), W)
        with pytest.raises(ValueError, match="feature id -1 "):
            ops.decode_topk(torch.ones(1, 1), torch.tensor([[-1]]), W)
        with pytest.raises(ValueError, match="feature id"):
            ops.decode_topk(torch.ones(1, 1), torch.tensor([[2**32]]), W)


def test_shapes_that_do_not_fit_are_named() -> None:
    acts = pattern(3, 10, 4, torch.float32, seed=0)
    W, g = torch.zeros(10, 4), torch.zeros(3, 4)
    cases = [
        (
            lambda: ops.decode_csr(acts, W.T),
            r"decode_csr: W_dec must be \[F, d\]=\[10, \?\], got \[4, 10\] \(transposed\?\)",
        ),
        (lambda: ops.decode_csr(acts, W, torch.zeros(3)), r"decode_csr: b_dec must be \[d\]=\[4\], got \[3\]"),
        (lambda: ops.decode_topk(torch.zeros(3, 2), torch.zeros(3, 1).int(), W), r"indices must be \[n, k\]=\[3, 2\]"),
        (lambda: ops.decode_topk(torch.zeros(3, 2), torch.zeros(3, 2), W), "must be integers"),
        (
            lambda: ops.sampled_dot(g, W[:, :3], acts.indptr, acts.indices),
            r"W must be \[F, d\]=\[\?, 4\], got \[10, 3\]",
        ),
        (lambda: ops.sampled_dot(g[:2], W, acts.indptr, acts.indices), r"indptr must be \[n \+ 1\]=\[3\], got \[4\]"),
        (lambda: ops.sampled_dot(g, W, acts.indptr.int(), acts.indices), "indptr must be int64"),
        (lambda: ops.segment_outer(acts.indptr, acts.indices, torch.zeros(99), g, 10), r"values must be \[nnz\]"),
        (lambda: ops.segment_outer(acts.indptr, acts.indices, acts.values, g, 0), "n_features must be in 1.."),
        (
            lambda: ops.contract(torch.zeros(2, 4, 4), acts, W),
            r"contract: G must be \[b, p, d\]=\[\?, 3, \?\], got \[2, 4, 4\]",
        ),
        (
            lambda: ops.contract(torch.zeros(2, 3, 5), acts, W),
            r"contract: W_dec must be \[F, d\]=\[10, 5\], got \[10, 4\]",
        ),
    ]
    for call, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            call()


def test_broken_row_pointers_are_refused() -> None:
    W, x = torch.zeros(10, 4), torch.zeros(2, 4)
    for indptr in ([0, 3, 2], [1, 1, 2], [0, 1, 3], [0, -1, 2]):
        with pytest.raises(ValueError, match="indptr must grow from 0 to nnz=2"):
            ops.sampled_dot(x, W, torch.tensor(indptr), BAD.indices[:2])
