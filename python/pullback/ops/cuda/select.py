"""CUDA: exact top-k of rows, whole or a chunk of columns at a time, and what lies above a threshold."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback import _cuda

from .. import reference
from .launch import optional_view, queue, view

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def topk_select(h: Tensor, k: int, relu: bool, maxima: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k largest of each row, ties to the lower id, NaN above all, in ascending order of id.

    h: Float[Tensor, "n F"]; float64 runs on the reference.
    maxima: Float[Tensor, "n ceil(F/64)"] of h's dtype, the largest of each 64 columns (NaN where one is): with it only
        the tiles that can matter are read. A maximum that is too low loses winners; one too high only costs time.
    Returns values Float 'n k' and indices Int32 'n k'.

    Raises:
        ValueError: k out of 1..F, or shapes, dtypes or devices that do not fit.
    """
    _check("topk_select", h)
    if not 1 <= k <= h.shape[1]:
        raise ValueError(f"topk_select (cuda): k must be in 1..F={h.shape[1]}, got {k}")
    if h.dtype == torch.float64:
        return reference.topk_select(h, k, relu)
    values, indices = h.new_empty(h.shape[0], k), h.new_empty(h.shape[0], k, dtype=torch.int32)
    with queue("topk_select", h, maxima) as place:
        lent = view(h), optional_view(maxima), view(values), view(indices)
        _cuda.topk_select(*lent, 0, 0, relu, *place)
    return values, indices


def topk_select_tiles(h: Tensor, maxima: Tensor, k: int, relu: bool) -> tuple[Tensor, Tensor]:
    """:func:`topk_select` by way of the maxima of tiles."""
    return topk_select(h, k, relu, maxima)


def select_running(h: Tensor, first_id: int, values: Tensor, indices: Tensor, *, relu: bool = False) -> None:
    """Lets the columns first_id, first_id + 1, ... of the pre-activations join a running top-k, in place.

    Chunks of columns come in ascending order, the first from :func:`topk_select` without relu. Only what beats a row's
    smallest running value is looked at twice.

    h: Float[Tensor, "n c"]; values: Float[Tensor, "n k"] of its dtype and indices: Int32[Tensor, "n k"], the best of
    columns 0..first_id-1. relu: for the last chunk, negative values become 0.

    Raises:
        ValueError: fewer than k columns before, or shapes, dtypes or devices that do not fit.
    """
    _check("select_running", h)
    if values.ndim != 2 or not 1 <= values.shape[1] <= first_id:
        raise ValueError(
            f"select_running (cuda): values must be [n, k] with k in 1..first_id={first_id}, got {list(values.shape)}; "
            "make the first chunk at least k columns wide"
        )
    if h.dtype == torch.float64:
        raise ValueError("select_running (cuda): h must be float32, bfloat16 or float16, got torch.float64")
    with queue("select_running", h, values, indices) as place:
        lent = view(h), None, view(values), view(indices)
        _cuda.topk_select(*lent, values.shape[1], first_id, relu, *place)


def threshold_select(
    h: Tensor, theta: Tensor | None = None, capacity: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The elements of h above theta (JumpReLU), or above 0 without theta (ReLU), as sparse rows.

    Zeros are dropped and NaN is kept, as in `JumpReLU.dense`.

    h: Float[Tensor, "n c"]. theta: Float[Tensor, "c"]. capacity: entries to make room for; None waits for the device
    and makes just enough. With a capacity nothing waits, and entries beyond it are lost: indptr[-1] tells.
    Returns indptr Int64 'n+1', indices Int32 'nnz', values Float 'nnz'.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
    """
    _check("threshold_select", h)
    if h.dtype == torch.float64:
        raise ValueError("threshold_select (cuda): h must be float32, bfloat16 or float16, got torch.float64")
    theta = None if theta is None else theta.float().contiguous()
    indptr = h.new_empty(h.shape[0] + 1, dtype=torch.int64)
    with queue("threshold_select", h, theta) as place:
        inputs = view(h), optional_view(theta), view(indptr)
        _cuda.threshold_count(*inputs, *place)
        size = int(indptr[-1]) if capacity is None else capacity
        indices, values = h.new_empty(size, dtype=torch.int32), h.new_empty(size)
        _cuda.threshold_compact(*inputs, view(indices), view(values), *place)
    return indptr, indices, values


def _check(op: str, h: Tensor) -> None:
    if h.ndim != 2 or h.dtype not in (*_DTYPES, torch.float64):
        raise ValueError(f"{op} (cuda): h must be floating [n, F], got {h.dtype} {list(h.shape)}")
    if h.shape[1] > 1 and h.stride(1) != 1:
        raise ValueError(f"{op} (cuda): rows of h must be contiguous, got strides {h.stride()}")
