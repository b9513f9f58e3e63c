"""Sampled dot: ``out[e] = <g[row of e], W[indices[e]]>`` at the entries of a CSR pattern.

One program makes at most BLOCK_E entries of one row, with one accumulator per (entry, column) added up at the end: the
order of a sum depends on the tile and on nothing else, so results repeat bit for bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .aot_case import AotCase
from .entry_tiles import entry_tile


@triton.jit(do_not_specialize=["N", "nnz"])
def sampled_dot_kernel(
    indptr_ptr,  # int64 [N + 1]
    indices_ptr,  # int32 [nnz]
    g_ptr,  # float [N, d], rows g_stride elements apart
    W_ptr,  # float [F, d], rows W_stride elements apart
    out_ptr,  # float [nnz]
    N,
    nnz,
    F,
    d,
    g_stride,
    W_stride,
    ACC: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row, start, end, damaged = entry_tile(indptr_ptr, N, nnz, tl.program_id(0), BLOCK_E)
    if start < end:
        e = start + tl.arange(0, BLOCK_E)
        live = e < end
        feature = tl.load(indices_ptr + e, mask=live, other=0)
        known = (feature >= 0) & (feature < F) & (damaged == 0)
        W_row = W_ptr + feature.to(tl.int64)[:, None] * W_stride
        read = (live & known)[:, None]
        acc = tl.zeros((BLOCK_E, BLOCK_D), dtype=ACC)
        column = 0
        while column < d:
            columns = column + tl.arange(0, BLOCK_D)
            inside = columns < d
            g = tl.load(g_ptr + row.to(tl.int64) * g_stride + columns, mask=inside, other=0).to(ACC)
            w = tl.load(W_row + columns[None, :], mask=read & inside[None, :], other=0).to(ACC)
            acc += g[None, :] * w
            column += BLOCK_D
        dots = tl.where(known, tl.sum(acc, axis=1), float("nan"))
        tl.store(out_ptr + e, dots.to(out_ptr.dtype.element_ty), mask=live)


def sampled_dot_config(d: int, element_size: int) -> dict[str, int]:
    """Tile of dots of length ``d``: a row of it is what a warp reads with one 16-byte load per thread.

    Narrow rows shrink the tile; fewer warps then keep each thread at four gathers in flight or more.
    """
    full_warp = 32 * 16 // element_size
    BLOCK_D = min(full_warp, max(16, triton.next_power_of_2(d)))
    return {"BLOCK_E": 16, "BLOCK_D": BLOCK_D, "num_warps": 4 if full_warp == BLOCK_D else 2}


def _case(dtype: str, d: int, aligned: bool) -> AotCase:
    config = sampled_dot_config(d, {"fp64": 8, "fp32": 4, "bf16": 2}[dtype])
    out = "fp64" if dtype == "fp64" else "fp32"
    pointers = {"indptr_ptr": "*i64", "indices_ptr": "*i32", "g_ptr": f"*{dtype}", "W_ptr": f"*{dtype}"}
    pointers |= {"out_ptr": f"*{out}"}
    numbers = {"N": "i32", "nnz": "i64", "F": "i32", "d": "i32", "g_stride": "i64", "W_stride": "i64"}
    constexprs = {"ACC": tl.float64 if dtype == "fp64" else tl.float32}
    constexprs |= {"BLOCK_E": config["BLOCK_E"], "BLOCK_D": config["BLOCK_D"]}
    return AotCase(
        label=f"{dtype}, d={d}",
        kernel=sampled_dot_kernel,
        signature=pointers | numbers | dict.fromkeys(constexprs, "constexpr"),
        constexprs=constexprs,
        divisible_by_16=(*pointers, "d", "g_stride", "W_stride") if aligned else tuple(pointers),
        options={"num_warps": config["num_warps"]},
        wants_vector_loads=aligned,
    )


AOT_CASES = [
    _case("fp32", d=768, aligned=True),
    _case("fp32", d=33, aligned=False),
    _case("bf16", d=2304, aligned=True),
    _case("fp64", d=768, aligned=True),
]
