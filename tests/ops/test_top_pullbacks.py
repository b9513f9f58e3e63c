"""The best features of a direction: against a sort of all of them, in small blocks and large."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pullback.ops.pullbacks as module
from pullback import ops
from pullback.ops.reference.attribution import top_pullbacks as reference
from tests.ops.cases import FLOATS, pattern


def whole(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Small whole numbers: products are exact in any order of summation, and ties are many."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_same(got: tuple[torch.Tensor, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert got[1].dtype == torch.int32
    assert torch.equal(got[1], expected[1])
    torch.testing.assert_close(got[0], expected[0], rtol=0, atol=0, equal_nan=True)


@given(
    r=st.integers(0, 6),
    F=st.sampled_from([1, 2, 7, 40, 65]),
    d=st.sampled_from([1, 3, 16, 33]),
    share=st.floats(0, 1),
    kind=st.sampled_from(["none", "dense", "sparse"]),
    absolute=st.booleans(),
    dtype=st.sampled_from([*FLOATS, torch.bfloat16]),
    scratch=st.sampled_from([1, 10, 50, 2**22]),
    seed=st.integers(0, 2**16),
)
def test_against_a_sort_of_everything(
    r: int, F: int, d: int, share: float, kind: str, absolute: bool, dtype: torch.dtype, scratch: int, seed: int
) -> None:
    v, W, k = whole(seed, r, d, dtype=dtype), whole(seed + 1, F, d, dtype=dtype), max(1, int(share * F))
    scale = None
    if kind == "dense":
        scale = whole(seed + 2, F, dtype=dtype)
    if kind == "sparse":
        acts = pattern(r, F, 9, dtype, seed)
        scale = ops.SparseActivations(acts.indptr, acts.indices, whole(seed, acts.nnz, dtype=dtype), F)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = reference(v.to(wide), W.to(wide), k, None if scale is None else scale.to(dtype=wide), absolute)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SCRATCH", scratch)
        patch.setattr(module, "TARGETS", 4)
        assert_same(ops.top_pullbacks(v, W, k, scale, absolute), expected)
    with ops.use_backend("reference"):
        assert_same(ops.top_pullbacks(v, W, k, scale, absolute), expected)


def test_order_and_signs() -> None:
    W = torch.tensor([[1.0], [-3.0], [2.0], [3.0], [2.0], [0.0]])
    values, ids = ops.top_pullbacks(torch.ones(1, 1), W, 4)
    assert (values.tolist(), ids.tolist()) == ([[3, 2, 2, 1]], [[3, 2, 4, 0]])
    values, ids = ops.top_pullbacks(torch.ones(1, 1), W, 4, absolute=True)
    assert (values.tolist(), ids.tolist()) == ([[-3, 3, 2, 2]], [[1, 3, 2, 4]])
    values, ids = ops.top_pullbacks(torch.ones(1, 1), W, 2, scale=torch.tensor([9.0, -1, 0, 1, 5, 1]))
    assert (values.tolist(), ids.tolist()) == ([[10, 9]], [[4, 0]])


def test_only_active_features_count() -> None:
    """An inactive feature does not appear, not even before one with a negative product."""
    W = torch.tensor([[1.0], [-3.0], [2.0]])
    acts = ops.SparseActivations.from_dense(torch.tensor([[0.0, 2, 0], [0, 0, 0], [1, 1, 1]]))
    values, ids = ops.top_pullbacks(torch.ones(3, 1), W, 2, acts)
    assert ids.tolist() == [[1, -1], [-1, -1], [2, 0]]
    assert values.tolist() == [[-6, 0], [0, 0], [2, 1]]


def test_nan_comes_first_and_infinity_next(monkeypatch: pytest.MonkeyPatch) -> None:
    W = torch.tensor([[1.0], [-torch.inf], [2.0], [torch.nan], [torch.inf], [5.0]])
    for scratch in (1, 2**22):
        monkeypatch.setattr(module, "SCRATCH", scratch)
        assert ops.top_pullbacks(torch.ones(1, 1), W, 3)[1].tolist() == [[3, 4, 5]]
        assert ops.top_pullbacks(torch.ones(1, 1), W, 3, absolute=True)[1].tolist() == [[3, 1, 4]]


def test_no_row_of_all_features_is_made() -> None:
    largest = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204, ARG002
            out = func(*args, **(kwargs or {}))
            # Views of what was given own nothing.
            if isinstance(out, torch.Tensor) and not out._is_view():
                largest.append(out.numel())
            return out

    v, W = torch.randn(50, 4), torch.randn(200_000, 4)
    with Sizes():
        values, _ = ops.top_pullbacks(v, W, 5)
    assert max(largest) <= module.SCRATCH
    assert 2 * module.SCRATCH < 50 * 200_000
    torch.testing.assert_close(values, (v @ W.T).topk(5).values)


def test_what_does_not_fit_is_named() -> None:
    v, W = torch.zeros(2, 4), torch.zeros(10, 4)
    cases = [
        (lambda: ops.top_pullbacks(v, W.T, 1), r"W_dec must be \[F, d\]=\[\?, 4\], got \[4, 10\] \(transposed\?\)"),
        (lambda: ops.top_pullbacks(v[0], W, 1), r"v must be \[r, d\], got \[4\]"),
        (lambda: ops.top_pullbacks(v, W, 11), "k must be in 1..F=10, got 11"),
        (lambda: ops.top_pullbacks(v, W, 1, torch.ones(4)), r"scale must be \[F\]=\[10\], got \[4\]"),
        (
            lambda: ops.top_pullbacks(v, W, 1, pattern(3, 10, 2, torch.float32, 0)),
            r"scale must be \[r, F\]=\[2, 10\], got \[3, 10\]",
        ),
    ]
    for call, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            call()
