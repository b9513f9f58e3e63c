"""The compiled CPU backend: hands borrowed memory to `pullback._C`, which checks shapes and ids before touching it.

Signatures are those of `reference`. Inputs are float32 or float64, all of one dtype, with contiguous last dimensions:
what the public functions pass on.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from pullback import _C

# Importing the backend settles the instruction set, so that a wrong PULLBACK_ISA is reported here and now.
_C.isa()


_View: TypeAlias = tuple[int, int, tuple[int, ...], tuple[int, ...]]


def _view(t: Tensor) -> _View:
    """(address, bytes an element, shape, strides): all that the kernels know of a tensor."""
    return t.data_ptr(), t.element_size(), tuple(t.shape), t.stride()


def topk_select(h: Tensor, k: int, relu: bool) -> tuple[Tensor, Tensor]:
    values = h.new_empty(h.shape[0], k)
    indices = torch.empty(h.shape[0], k, dtype=torch.int32)
    _C.topk_select(_view(h), _view(values), _view(indices), relu)
    return values, indices


class Candidates(NamedTuple):
    """Of each row, the features that may matter: see csrc/kernels.h."""

    ids: Tensor
    lows: Tensor
    highs: Tensor
    counts: Tensor
    bounds: Tensor
    limits: Tensor


def _optional(t: Tensor | None) -> _View | None:
    return None if t is None else _view(t)


def screen_block(
    y: Tensor,
    first: int,
    bias: Tensor,
    norms: Tensor,
    rests: Tensor | None,
    x_norms: Tensor,
    x_rests: Tensor | None,
    gamma: float,
    rho: float,
    k: int,
    thresholds: Tensor | None,
    candidates: Candidates,
) -> None:
    """Add what may matter of the columns y (R, w) ~ x W^T of features first, first + 1, ... to the candidates."""
    weights = _view(bias), _view(norms), _optional(rests), _view(x_norms), _optional(x_rests)
    _C.screen_block(_view(y), first, *weights, gamma, rho, k, _optional(thresholds), [_view(t) for t in candidates])


def settle_topk(
    x: Tensor, W: Tensor, b: Tensor, candidates: Candidates, values: Tensor, indices: Tensor, relu: bool
) -> None:
    """Write the exact top-k of the rows whose candidates settle it."""
    views = [_view(t) for t in candidates]
    _C.settle_topk(_view(x), _view(W), _view(b), views, _view(values), _view(indices), relu)


def settle_threshold(x: Tensor, W: Tensor, b: Tensor, thresholds: Tensor, candidates: Candidates) -> None:
    """Leave of the candidates those above their threshold, with their exact pre-activation in `lows`."""
    _C.settle_threshold(_view(x), _view(W), _view(b), _view(thresholds), [_view(t) for t in candidates])


def norm_rows(rows: Tensor) -> Tensor:
    """Float32[Tensor, 'n'], not below the Euclidean norms of float32 rows (n, d)."""
    norms = torch.empty(rows.shape[0])
    _C.norm_rows(_view(rows), _view(norms))
    return norms


def shadow_rows(rows: Tensor, W16: Tensor, norms: Tensor, rests: Tensor) -> None:
    """W16 = bf16(rows), with upper bounds of the norms of rows and of rows - W16: see `screen.Screen`."""
    _C.shadow_rows(_view(rows), _view(W16), _view(norms), _view(rests))


def decode_csr(indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor | None) -> Tensor:
    out = values.new_empty(indptr.shape[0] - 1, W_dec.shape[1])
    bias = None if b_dec is None else _view(b_dec)
    _C.decode_csr(_view(indptr), _view(indices), _view(values), _view(W_dec), bias, _view(out))
    return out


def sampled_dot(g: Tensor, W: Tensor, indptr: Tensor, indices: Tensor) -> Tensor:
    out = g.new_empty(indices.shape[0])
    _C.sampled_dot(_view(g), _view(W), _view(indptr), _view(indices), _view(out))
    return out


def segment_outer(indptr: Tensor, indices: Tensor, values: Tensor, x: Tensor, n_features: int) -> Tensor:
    out = x.new_empty(n_features, x.shape[1])
    _C.segment_outer(_view(indptr), _view(indices), _view(values), _view(x), _view(out))
    return out


def contract(G: Tensor, indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor) -> Tensor:
    out = G.new_empty(G.shape[0], indices.shape[0])
    _C.contract(_view(G), _view(indptr), _view(indices), _view(values), _view(W_dec), _view(out))
    return out
