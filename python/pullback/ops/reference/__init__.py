"""Every op in a few lines of plain torch, at the precision of its inputs (give float64 to get an oracle).

The compiled backends are tested against these; `use_backend("reference")` puts them in anywhere. They are also what
runs on a device that has no kernel of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .encoder import (
    encode_gemm,
    round_rows,
    select_running,
    threshold_select,
    topk_exhaust_,
    topk_select_tiles,
    topk_settle,
)
from .gradient import (
    adam_,
    column_moments,
    decode_residual,
    dense_adam_,
    feature_order,
    gradient_bound,
    gradient_norm,
)
from .ids import checked

__all__ = [
    "adam_",
    "checked",
    "column_moments",
    "contract",
    "decode_csr",
    "decode_residual",
    "dense_adam_",
    "encode_gemm",
    "feature_order",
    "gradient_bound",
    "gradient_norm",
    "round_rows",
    "rows_of",
    "sampled_dot",
    "segment_outer",
    "select_running",
    "threshold_select",
    "topk_encode",
    "topk_exhaust_",
    "topk_select",
    "topk_select_tiles",
    "topk_settle",
]


def rows_of(indptr: Tensor, nnz: int) -> Tensor:
    """Int64[Tensor, "nnz"]: the row of each CSR entry."""
    row = torch.arange(indptr.shape[0] - 1, device=indptr.device)
    return row.repeat_interleave(indptr.diff(), output_size=nnz)


def topk_select(h: Tensor, k: int, relu: bool) -> tuple[Tensor, Tensor]:
    """The k largest of each row of h (n, F), ties to the lower id, in ascending order of id."""
    # A stable descending sort is the definition itself: NaN first, and equal values in order of id.
    order = h.sort(dim=1, descending=True, stable=True).indices[:, :k]
    indices = order.sort(dim=1).values
    values = h.gather(1, indices)
    if relu:
        values = torch.where(values <= 0, 0, values)
    return values, indices.int()


def topk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, relu: bool) -> tuple[Tensor, Tensor]:
    """Top-k of x @ W_enc.T + b_enc, accumulated in float64 and rounded once, to float32 or more.

    x has, or is first rounded to, the dtype of the weights.
    """
    h = x.to(W_enc.dtype).double() @ W_enc.double().T + b_enc.double()
    return topk_select(h.to(torch.promote_types(W_enc.dtype, torch.float32)), k, relu)


def decode_csr(indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor | None) -> Tensor:
    """out[n] = b_dec + sum over entries e of row n of values[e] * W_dec[indices[e]]."""
    n = indptr.shape[0] - 1
    base = values.new_zeros(n, W_dec.shape[1]) if b_dec is None else b_dec.to(values.dtype).expand(n, -1).clone()
    return base.index_add(
        0, rows_of(indptr, len(indices)), values[:, None] * W_dec[checked("decode_csr", indices, len(W_dec))]
    )


def sampled_dot(g: Tensor, W: Tensor, indptr: Tensor, indices: Tensor) -> Tensor:
    """out[e] = <g[row of e], W[indices[e]]>."""
    return (g[rows_of(indptr, len(indices))] * W[checked("sampled_dot", indices, len(W))]).sum(1)


def segment_outer(indptr: Tensor, indices: Tensor, values: Tensor, x: Tensor, n_features: int) -> Tensor:
    """out[f] = sum over entries e of feature f of values[e] * x[row of e]."""
    out = x.new_zeros(n_features, x.shape[1], dtype=torch.promote_types(values.dtype, x.dtype))
    return out.index_add(
        0, checked("segment_outer", indices, n_features), values[:, None] * x[rows_of(indptr, len(indices))]
    )


def contract(G: Tensor, indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor) -> Tensor:
    """out[b, e] = values[e] * <G[b, row of e], W_dec[indices[e]]>, at the precision of values."""
    G_rows = G[:, rows_of(indptr, len(indices))].to(values.dtype)
    W_rows = W_dec[checked("contract", indices, len(W_dec))].to(values.dtype)
    return values * torch.einsum("bed,ed->be", G_rows, W_rows)
