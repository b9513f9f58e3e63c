"""Sampled dots, segment sums and contractions of the Triton backend in Triton's interpreter, on CPU tensors.

Not collected by name: see `interpreter.py`.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pullback.ops import reference, use_backend
from pullback.ops import triton as backend
from tests.ops.cases import FLOATS, assert_sums, pattern, shapes
from tests.ops.interpreter import needs_ranges

few = settings(max_examples=25, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
quiet = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy remarks on NaN


def rand(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@few
@given(shape=shapes, dtype=st.sampled_from([*FLOATS, torch.bfloat16]))
def test_sampled_dot(shape: dict[str, int], dtype: torch.dtype) -> None:
    n, F, d, seed = (shape[name] for name in ("n", "F", "d", "seed"))
    acts = pattern(n, F, shape["most"], torch.float32, seed)
    g, W = rand(n, d, seed=seed, dtype=dtype), rand(F, d, seed=seed + 1, dtype=dtype)
    got = backend.sampled_dot(g, W, acts.indptr, acts.indices)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    arguments = acts.indptr, acts.indices
    expected = reference.sampled_dot(g.double(), W.double(), *arguments)
    assert_sums(got, expected, reference.sampled_dot(g.double().abs(), W.double().abs(), *arguments), d)


@few
@given(shape=shapes, dtype=st.sampled_from([*FLOATS, torch.bfloat16]))
def test_segment_outer(shape: dict[str, int], dtype: torch.dtype) -> None:
    n, F, d, seed = (shape[name] for name in ("n", "F", "d", "seed"))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    acts = pattern(n, F, shape["most"], wide, seed)
    x = rand(n, d, seed=seed, dtype=dtype)
    got = backend.segment_outer(acts.indptr, acts.indices, acts.values, x, F)
    arguments = acts.indptr, acts.indices
    expected = reference.segment_outer(*arguments, acts.values.double(), x.double(), F)
    magnitude = reference.segment_outer(*arguments, acts.values.double().abs(), x.double().abs(), F)
    assert got.dtype == wide
    assert_sums(got, expected, magnitude, n)


@quiet
def test_ids_out_of_range_show_or_stay_out() -> None:
    indptr, indices = torch.tensor([0, 2, 4]), torch.tensor([1, 5, -1, 0], dtype=torch.int32)
    x, W = rand(2, 8, seed=0), rand(5, 8, seed=1)
    dots = backend.sampled_dot(x, W, indptr, indices)
    assert dots.isnan().tolist() == [False, True, True, False]
    outer = backend.segment_outer(indptr, indices, torch.ones(4), x, 5)
    assert torch.equal(outer, torch.stack([x[1], x[0], *torch.zeros(3, 8)]))


@quiet
@pytest.mark.parametrize("indptr", [[0, 2, 9], [0, 4, 2], [-3, 2, 4]], ids=["past the end", "descending", "negative"])
def test_damaged_pointers_stay_in_bounds(indptr: list[int]) -> None:
    W = rand(5, 8, seed=1)
    dots = backend.sampled_dot(rand(2, 8, seed=0), W, torch.tensor(indptr), torch.arange(4, dtype=torch.int32))
    assert bool(dots.isnan().any())


@needs_ranges
@few
@given(
    shape=shapes,
    b=st.integers(0, 70),
    layers=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    add=st.booleans(),
)
def test_contract(shape: dict[str, int], b: int, layers: int, dtype: torch.dtype, add: bool) -> None:
    P, F, d, seed = (shape[name] for name in ("n", "F", "d", "seed"))
    acts = pattern(P, F, 10 * shape["most"], torch.float32, seed)
    # Strides of every leading dimension differ from those of a contiguous tensor.
    G = rand(b, layers, P + 1, d + 3, seed=seed, dtype=dtype)[:, :, :P, :d].transpose(0, 1)
    W = rand(F, layers + 1, d, seed=seed + 1, dtype=dtype)[:, :layers]
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    before = rand(b, acts.nnz, seed=seed + 2, dtype=sums)
    out = before.clone() if add else None
    got = backend.contract(G, acts.indptr, acts.indices, acts.values, W, out)
    assert got is out or not add

    arguments = acts.indptr, acts.indices, acts.values.double()
    each = [(G[l].double(), W[:, l].double()) for l in range(layers)]
    expected = sum((reference.contract(g, *arguments, w) for g, w in each), before.double() * add)
    sizes = (arguments[0], arguments[1], arguments[2].abs())
    magnitude = sum((reference.contract(g.abs(), *sizes, w.abs()) for g, w in each), before.double().abs() * add)
    assert isinstance(expected, torch.Tensor)
    assert isinstance(magnitude, torch.Tensor)
    assert_sums(got, expected, magnitude, layers * d + 1)
    if layers == 1 and not add:
        one = backend.contract(G[0], acts.indptr, acts.indices, acts.values, W[:, 0])
        assert torch.equal(one, got)


@quiet
@needs_ranges
def test_contract_marks_ids_out_of_range() -> None:
    indptr, indices = torch.tensor([0, 2, 4]), torch.tensor([1, 5, -1, 0], dtype=torch.int32)
    edges = backend.contract(rand(3, 2, 8, seed=0), indptr, indices, torch.ones(4), rand(5, 8, seed=1))
    assert edges.isnan().all(0).tolist() == [False, True, True, False]
    assert edges.isnan().any(0).tolist() == [False, True, True, False]


def test_gradients_of_a_decode_come_from_triton_alone() -> None:
    from pullback import ops

    acts = pattern(6, 40, 9, torch.float32, seed=3)
    results = []
    for name in ("triton", "reference"):
        values, W, b = acts.values.clone(), rand(40, 17, seed=4), rand(17, seed=5)
        leaves = [t.requires_grad_() for t in (values, W, b)]
        with use_backend(name):
            sparse = ops.SparseActivations(acts.indptr, acts.indices, values, 40)
            (ops.decode_csr(sparse, W, b) ** 2).sum().backward()
        results.append([leaf.grad for leaf in leaves])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@few
@given(
    n=st.sampled_from([0, 1, 63, 64, 65, 200]),
    d=st.sampled_from([0, 1, 33, 128, 300]),
    dtype=st.sampled_from(FLOATS),
    pad=st.sampled_from([0, 3]),
)
def test_column_moments(n: int, d: int, dtype: torch.dtype, pad: int) -> None:
    y, center = rand(n, d + pad, seed=n, dtype=dtype)[:, :d], rand(d, seed=d, dtype=torch.float64)
    for got, expected in zip(backend.column_moments(y, center), reference.column_moments(y, center), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
