"""The compiled CPU backend: hands borrowed memory to `pullback._C`, which checks shapes and ids before touching it.

Signatures are those of `reference`. Inputs are float32 or float64, all of one dtype unless a function says otherwise,
with contiguous last dimensions: what the public functions pass on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pullback import _C

from .borrow import view
from .gradient import adam_, column_moments, decode_residual, feature_order, gradient_bound, gradient_norm
from .pages import results

__all__ = [
    "adam_",
    "column_moments",
    "contract",
    "decode_csr",
    "decode_residual",
    "feature_order",
    "gradient_bound",
    "gradient_norm",
    "sampled_dot",
    "segment_outer",
    "topk_select",
]

# Importing the backend settles the instruction set, so that a wrong PULLBACK_ISA is reported here and now.
_C.isa()


def topk_select(h: Tensor, k: int, relu: bool) -> tuple[Tensor, Tensor]:
    values = h.new_empty(h.shape[0], k)
    indices = h.new_empty(h.shape[0], k, dtype=torch.int32)
    _C.topk_select(view(h), view(values), view(indices), relu)
    return values, indices


def decode_csr(indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor | None) -> Tensor:
    out = values.new_empty(indptr.shape[0] - 1, W_dec.shape[1])
    bias = None if b_dec is None else view(b_dec)
    _C.decode_csr(view(indptr), view(indices), view(values), view(W_dec), bias, view(out))
    return out


def sampled_dot(g: Tensor, W: Tensor, indptr: Tensor, indices: Tensor) -> Tensor:
    out = g.new_empty(indices.shape[0])
    _C.sampled_dot(view(g), view(W), view(indptr), view(indices), view(out))
    return out


def segment_outer(indptr: Tensor, indices: Tensor, values: Tensor, x: Tensor, n_features: int) -> Tensor:
    out = results.empty(x, n_features, x.shape[1])
    _C.segment_outer(view(indptr), view(indices), view(values), view(x), view(out))
    return out


def contract(G: Tensor, indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor) -> Tensor:
    """G and W_dec may be bfloat16 beside float32 values."""
    out = values.new_empty(G.shape[0], indices.shape[0])
    _contract(out, G[None], indptr, indices, values, W_dec[:, None], False)
    return out


def contract_into(out: Tensor, G: Tensor, indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor) -> None:
    """out (B, nnz) += the contractions of G (L, B, P, d) with W_dec (F, L, d), layer by layer."""
    _contract(out, G, indptr, indices, values, W_dec, True)


def _contract(
    out: Tensor, G: Tensor, indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor, add: bool
) -> None:
    if torch.float16 in (G.dtype, W_dec.dtype):
        raise ValueError("contract (cpu): float16 is not supported, only float32, float64 and bfloat16")
    _C.contract(view(G), view(indptr), view(indices), view(values), view(W_dec), view(out), add)
