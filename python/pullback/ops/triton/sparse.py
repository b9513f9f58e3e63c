"""The sparse ops in Triton: decode, its two gradients, and the contraction of attribution."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from ..gpu.checks import check_decode_csr
from .launch import (
    INTERPRETED,
    MAX_PROGRAMS,
    MAX_TILES,
    blocks,
    check_placed,
    check_programs,
    dot_operand,
    kernels,
)

_TYPES = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


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

    config = kernels.launch_config(d, W_dec.element_size())
    grid = (N, blocks(d, config["BLOCK_D"]))
    if grid[0] > MAX_PROGRAMS or grid[1] > MAX_TILES:
        raise ValueError(f"decode_csr (triton): [N, d]=[{N}, {d}] is too large for one launch; decode it in pieces")
    # Rows vary fastest in the grid, so programs that run together share one column tile of W_dec, which L2 may hold.
    with torch.cuda.device_of(W_dec):
        kernels.decode_csr_kernel[grid](
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


def sampled_dot(g: Tensor, W: Tensor, indptr: Tensor, indices: Tensor) -> Tensor:
    """out[e] = <g[row of e], W[indices[e]]>: Float 'n d', Float 'f d', Int64 'n+1', Int32 'nnz' -> Float 'nnz'.

    Sums, and the result, in float32, or in float64 if g or W is. NaN where a feature id or the pointers of a row are
    out of range.
    """
    check_placed("sampled_dot", g, W, indptr, indices)
    wide = torch.float64 in (g.dtype, W.dtype)
    nnz, (n, d), F = indices.numel(), g.shape, W.shape[0]
    out = torch.empty(nnz, dtype=torch.float64 if wide else torch.float32, device=g.device)
    if nnz == 0 or n == 0:
        return out
    config = kernels.sampled_dot_config(d, W.element_size())
    tiles = kernels.entry_tile_count(n, nnz, config["BLOCK_E"])
    check_programs("sampled_dot", tiles)
    with torch.cuda.device_of(W):
        kernels.sampled_dot_kernel[(tiles,)](
            indptr.contiguous(),
            indices.contiguous(),
            g,
            W,
            out,
            n,
            nnz,
            F,
            d,
            g.stride(0),
            W.stride(0),
            ACC=tl.float64 if wide else tl.float32,
            **config,
        )
    return out


def segment_outer(indptr: Tensor, indices: Tensor, values: Tensor, x: Tensor, n_features: int) -> Tensor:
    """out[f] = sum over entries e of feature f of values[e] * x[row of e]; Float 'nnz', Float 'n d' -> Float 'f d'.

    The transpose of a decode: entries sorted by feature are rows of feature f over the "features" n. Each feature is
    summed in order of its entries by one program, without atomics. Entries with an id out of range are left out.
    """
    check_placed("segment_outer", indptr, indices, values, x)
    sums = torch.promote_types(torch.promote_types(values.dtype, x.dtype), torch.float32)
    features, order = indices.sort(stable=True)
    starts = torch.searchsorted(features, torch.arange(n_features + 1, dtype=torch.int32, device=indices.device))
    row = torch.arange(indptr.numel() - 1, dtype=torch.int32, device=indices.device)
    rows = row.repeat_interleave(indptr.diff(), output_size=indices.numel())
    x = x.to(sums) if sums == torch.float64 else x
    return decode_csr(starts, rows[order], values[order].to(sums), x, None)


def contract(
    G: Tensor, indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor, out: Tensor | None = None
) -> Tensor:
    """out[b, e] = values[e] * <G[b, row of e], W_dec[indices[e]]>, added to `out` where one is given.

    G is Float 'b p d' and W_dec Float 'f d', or Float 'l b p d' and Float 'f l d', summed over the layers l that a
    cross-layer dictionary writes to; strides are free but for the last dimension. Sums in float32, or in float64 where
    G and W_dec are; the result has that dtype. float16 and bfloat16 operands reach the matrix units as they are, if
    G and W_dec agree. NaN where a feature id or the pointers of a row are out of range.

    Raises:
        ValueError: tensors on several devices or not on a CUDA device, or an `out` that does not fit.
    """
    if G.ndim == 3:
        G, W_dec = G[None], W_dec[:, None]
    dtype = G.dtype if G.dtype == W_dec.dtype else torch.promote_types(G.dtype, W_dec.dtype)
    G, W_dec = dot_operand(G.to(dtype)), dot_operand(W_dec.to(dtype))
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    (L, B, P, d), F, nnz = G.shape, W_dec.shape[0], indices.numel()
    add = out is not None
    if out is None:
        out = torch.empty(B, nnz, dtype=sums, device=G.device)
    elif out.shape != (B, nnz):
        raise ValueError(f"contract (triton): out must be [b, nnz]=[{B}, {nnz}], got {list(out.shape)}")
    check_placed("contract", G, W_dec, indptr, indices, values, out)
    if out.numel() == 0 or P == 0:
        return out
    config = kernels.contract_config(_TYPES[G.dtype], B, nnz / P)
    programs = kernels.entry_tile_count(P, nnz, config["BLOCK_E"]) * blocks(B, config["BLOCK_B"])
    check_programs("contract", programs)
    with torch.cuda.device_of(G):
        kernels.contract_kernel[(programs,)](
            indptr.contiguous(),
            indices.contiguous(),
            values.to(sums).contiguous(),
            G,
            W_dec,
            out,
            P,
            nnz,
            F,
            B,
            L,
            d,
            *G.stride()[:3],
            *W_dec.stride()[:2],
            out.stride(0),
            ADD=add,
            ACC=tl.float64 if sums == torch.float64 else tl.float32,
            **config,
        )
    return out
