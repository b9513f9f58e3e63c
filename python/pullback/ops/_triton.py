"""Triton backend. Importing this module imports triton; the dispatcher does so only when it is there."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# The build puts kernels/triton there; a type checker that reads the sources cannot know.
from pullback.kernels.triton import decode_csr_kernel, launch_config  # pyright: ignore[reportMissingImports]

from ._gpu import check_decode_csr

# TRITON_INTERPRET=1 at import time makes the kernels plain Python, which runs on CPU tensors (and only serves tests).
INTERPRETED = not isinstance(decode_csr_kernel, triton.JITFunction)

MAX_ROWS = 2**31 - 1  # CUDA's limit on the first grid dimension
MAX_TILES = 2**16 - 1  # and on the second


def available() -> bool:
    """Whether the kernels can run here: on a CUDA device, or interpreted."""
    return INTERPRETED or torch.cuda.is_available()


def decode_csr(indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor | None = None) -> Tensor:
    """Sparse decode ``out[n] = b_dec + sum_e values[e] * W_dec[indices[e]]`` over the entries of row n; no autograd.

    ``indptr`` Int64 'n+1', ``indices`` Int32 'nnz', ``values`` Float 'nnz', ``W_dec`` Float 'f d' (any row stride),
    ``b_dec`` Float 'd'. Sums in float32, or in float64 if W_dec and values are. Returns Float 'n d' in the dtype of
    values. Rows with an out-of-range row pointer or feature id come out as NaN.

    Raises:
        ValueError: shapes, dtypes, layouts or devices that do not fit.
    """
    sums = check_decode_csr("triton", indptr, indices, values, W_dec, b_dec)
    if not (W_dec.is_cuda or INTERPRETED):
        raise ValueError(f"decode_csr (triton): tensors must be on a CUDA device, got {W_dec.device}")
    N, (F, d) = indptr.numel() - 1, W_dec.shape
    out = torch.empty(N, d, dtype=values.dtype, device=W_dec.device)
    if out.numel() == 0:
        return out

    config = launch_config(d, W_dec.element_size())
    grid = (N, triton.cdiv(d, config["BLOCK_D"]))
    if grid[0] > MAX_ROWS or grid[1] > MAX_TILES:
        raise ValueError(f"decode_csr (triton): [N, d]=[{N}, {d}] is too large for one launch; decode it in pieces")
    # Rows vary fastest in the grid, so programs that run together share one column tile of W_dec, which L2 may hold.
    with torch.cuda.device_of(W_dec):
        decode_csr_kernel[grid](
            indptr.contiguous(),
            indices.contiguous(),
            values.contiguous(),
            W_dec,
            W_dec if b_dec is None else b_dec.contiguous(),
            out,
            values.numel(),
            F,
            d,
            W_dec.stride(0),
            HAS_BIAS=b_dec is not None,
            ACC=tl.float64 if sums == torch.float64 else tl.float32,
            **config,
        )
    return out
