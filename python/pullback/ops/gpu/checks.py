"""What the GPU backends check before a kernel may touch memory."""

from __future__ import annotations

import torch
from torch import Tensor

DECODE_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_decode_csr(
    backend: str, indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor | None
) -> torch.dtype:
    """Check the arguments of a sparse decode: Int64 'n+1', Int32 'nnz', Float 'nnz', Float 'f d', Float 'd'.

    Returns the dtype of the sums: float64 for float64 weights, else float32. Row pointers and feature ids are not read
    here, that would stall the GPU: a kernel gives NaN for a row whose pointers or ids are out of range.

    Raises:
        ValueError: a wrong rank, length, dtype, device or layout.
    """
    where = f"decode_csr ({backend})"
    if indptr.ndim != 1 or indptr.numel() == 0 or indptr.dtype != torch.int64:
        raise ValueError(f"{where}: indptr must be int64 [N+1], got {indptr.dtype} {list(indptr.shape)}")
    if indices.ndim != 1 or indices.dtype != torch.int32:
        raise ValueError(f"{where}: indices must be int32 [nnz], got {indices.dtype} {list(indices.shape)}")
    if values.shape != indices.shape or values.dtype not in DECODE_DTYPES:
        raise ValueError(
            f"{where}: values must be floating [nnz]={list(indices.shape)}, got {values.dtype} {list(values.shape)}"
        )
    if W_dec.ndim != 2 or W_dec.dtype not in DECODE_DTYPES:
        raise ValueError(f"{where}: W_dec must be floating [F, d], got {W_dec.dtype} {list(W_dec.shape)}")
    F, d = W_dec.shape
    if d > 1 and W_dec.stride(1) != 1:
        raise ValueError(
            f"{where}: rows of W_dec must be contiguous, got strides {W_dec.stride()}; "
            "pass W_dec [F, d] feature-major, not a transposed view"
        )
    if F == 0 and indices.numel() > 0:
        raise ValueError(f"{where}: {indices.numel()} entries but W_dec has no rows: {list(W_dec.shape)}")
    if b_dec is not None and (b_dec.shape != (d,) or b_dec.dtype not in DECODE_DTYPES):
        raise ValueError(f"{where}: b_dec must be floating [d]=[{d}], got {b_dec.dtype} {list(b_dec.shape)}")
    if (values.dtype == torch.float64) != (W_dec.dtype == torch.float64):
        raise ValueError(
            f"{where}: values and W_dec must both be float64 or neither, got {values.dtype} and {W_dec.dtype}"
        )
    devices = {t.device for t in (indptr, indices, values, W_dec, b_dec) if t is not None}
    if len(devices) != 1:
        raise ValueError(f"{where}: all tensors must be on one device, got {sorted(map(str, devices))}")

    return torch.float64 if W_dec.dtype == torch.float64 else torch.float32
