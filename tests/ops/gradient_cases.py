"""Sparse gradients and dictionaries for the tests of the training step's ops."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from pullback.ops import DictionaryParams, SparseGradient, feature_order

shapes = st.fixed_dictionaries(
    {
        "n": st.integers(1, 6),
        "stacked": st.sampled_from([1, 2, 3]),
        "nnz": st.sampled_from([0, 1, 3, 31, 32, 33, 100]),
        "F": st.sampled_from([1, 2, 5, 64, 200]),
        "d_in": st.sampled_from([0, 1, 3, 16, 63, 64, 65, 130]),
        "d_out": st.sampled_from([0, 1, 3, 16, 63, 64, 65, 130]),
        "seed": st.integers(0, 2**16),
    }
)


def gradient(
    n: int, stacked: int, nnz: int, F: int, d_in: int, d_out: int, seed: int, dtype: torch.dtype
) -> SparseGradient:
    """nnz entries, a third of them on feature 0, spread over rows of x (n) and of g (n * stacked)."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, F, (nnz,), generator=random)
    ids = torch.where(torch.rand(nnz, generator=random) < 1 / 3, 0, ids).int()
    starts, order = feature_order(ids, F)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)

    rows = torch.randint(0, n * stacked, (nnz,), generator=random, dtype=torch.int32)
    return SparseGradient(starts, order, rows, draw(nnz), draw(nnz), draw(n, d_in), draw(n * stacked, d_out))


def dictionary(grad: SparseGradient, seed: int, positive: bool = False) -> DictionaryParams:
    """Weights, or moments, of the shapes and dtype of a gradient; some decoder rows are zero."""
    random = torch.Generator().manual_seed(seed)
    F = len(grad.starts) - 1
    shapes = (F, grad.x.shape[1]), (F,), (F, grad.g.shape[1])
    drawn = [torch.randn(*shape, generator=random, dtype=torch.float64).to(grad.x.dtype) for shape in shapes]
    if positive:
        return DictionaryParams(*(t.abs() for t in drawn))
    drawn[2][::5] = 0
    return DictionaryParams(*drawn)


def copied(params: DictionaryParams, dtype: torch.dtype | None = None) -> DictionaryParams:
    return DictionaryParams(*(t.to(dtype or t.dtype, copy=True) for t in params))


def in_double(grad: SparseGradient) -> SparseGradient:
    return grad._replace(**{name: getattr(grad, name).double() for name in ("dvalues", "values", "x", "g")})
