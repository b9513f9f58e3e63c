"""CUDA backend: allocates, checks and hands addresses to the compiled module ``pullback._cuda``."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback import _cuda

from ..gpu.adam import dense_adam_
from ..gpu.checks import check_decode_csr
from .gradient import adam_, decode_residual, feature_order, gradient_bound, gradient_norm
from .launch import queue
from .select import select_running, threshold_select, topk_select, topk_select_tiles

__all__ = [
    "adam_",
    "available",
    "decode_csr",
    "decode_residual",
    "dense_adam_",
    "feature_order",
    "gradient_bound",
    "gradient_norm",
    "select_running",
    "threshold_select",
    "topk_select",
    "topk_select_tiles",
]

_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


def available() -> bool:
    """Whether both torch and the module see a device."""
    return torch.cuda.is_available() and _cuda.device_count() > 0


def decode_csr(indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor | None = None) -> Tensor:
    """Sparse decode ``out[n] = b_dec + sum_e values[e] * W_dec[indices[e]]`` over the entries of row n; no autograd.

    ``indptr`` Int64 'n+1', ``indices`` Int32 'nnz', ``values`` Float 'nnz', ``W_dec`` Float 'f d' (any row stride),
    ``b_dec`` Float 'd'. Sums in float32, or in float64 if W_dec and values are. Returns Float 'n d' in the dtype of
    values. Rows with an out-of-range row pointer or feature id come out as NaN.

    Raises:
        ValueError: shapes, dtypes, layouts or devices that do not fit.
        RuntimeError: what CUDA reports about the launch.
    """
    sums = check_decode_csr("cuda", indptr, indices, values, W_dec, b_dec)
    N, (F, d) = indptr.numel() - 1, W_dec.shape
    with queue("decode_csr", W_dec) as (device, stream):
        indptr, indices, entries = indptr.contiguous(), indices.contiguous(), values.to(sums).contiguous()
        bias = None if b_dec is None else b_dec.to(sums).contiguous()
        out = torch.empty(N, d, dtype=sums, device=W_dec.device)
        # The copies above may die before the kernel runs: their memory is reused on this same stream only, after it.
        _cuda.decode_csr(
            indptr=indptr.data_ptr(),
            indices=indices.data_ptr(),
            values=entries.data_ptr(),
            W_dec=W_dec.data_ptr(),
            b_dec=0 if bias is None else bias.data_ptr(),
            out=out.data_ptr(),
            n_rows=N,
            nnz=entries.numel(),
            n_features=F,
            d=d,
            W_stride=W_dec.stride(0),
            W_dtype=_NAMES[W_dec.dtype],
            device=device,
            stream=stream,
        )
        return out.to(values.dtype)
