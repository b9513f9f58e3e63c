"""The compiled CPU backend: hands borrowed memory to `pullback._C`, which checks shapes and ids before touching it.

Signatures are those of `reference`. Inputs are float32 or float64, all of one dtype, with contiguous last dimensions:
what the public functions pass on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pullback import _C

from ._borrow import view as _view
from ._cpu_gradient import adam_, column_moments, decode_residual, feature_order, gradient_bound, gradient_norm

__all__ = [
    "adam_",
    "column_moments",
    "contract",
    "decode_csr",
    "decode_residual",
    "feature_order",
    "gradient_bound",
    "gradient_norm",
    "row_norms",
    "sampled_dot",
    "segment_outer",
    "shadow_rows",
    "topk_certified",
    "topk_select",
]

# Importing the backend settles the instruction set, so that a wrong PULLBACK_ISA is reported here and now.
_C.isa()


def topk_select(h: Tensor, k: int, relu: bool) -> tuple[Tensor, Tensor]:
    values = h.new_empty(h.shape[0], k)
    indices = torch.empty(h.shape[0], k, dtype=torch.int32)
    _C.topk_select(_view(h), _view(values), _view(indices), relu)
    return values, indices


def topk_certified(
    h: Tensor, x: Tensor, W_enc: Tensor, b_enc: Tensor, W_norms: Tensor, k: int, relu: bool
) -> tuple[Tensor, Tensor]:
    """Top-k of h = x W_enc^T + b_enc (float32) as accumulation in float64 would have it.

    What the rounding error of h leaves within reach of the k-th largest is evaluated again, in float64, and rounded
    once: about k + 1 inner products a row. W_norms (F) are the :func:`row_norms` of W_enc.
    """
    values = h.new_empty(h.shape[0], k)
    indices = torch.empty(h.shape[0], k, dtype=torch.int32)
    x_norms = row_norms(x)  # by name: a view only borrows
    inputs = _view(h), _view(x), _view(W_enc), _view(b_enc), _view(x_norms), _view(W_norms)
    _C.topk_certified(*inputs, _view(values), _view(indices), relu)
    return values, indices


def row_norms(rows: Tensor) -> Tensor:
    """Euclidean norms of float32 rows (n, d), in float64."""
    norms = torch.empty(rows.shape[0], dtype=torch.float64)
    _C.row_norms(_view(rows), _view(norms))
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
