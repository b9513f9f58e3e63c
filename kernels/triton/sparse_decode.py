"""Sparse decode: ``out[n] = b_dec + sum over entries e of row n of values[e] * W_dec[indices[e]]``.

One program makes ``BLOCK_D`` columns of one row. It walks the row's entries ``BLOCK_K`` at a time, so that many
gathers are in flight, and keeps one accumulator per (lane, column); the lanes are added once, at the end. That order
depends on the tile and on nothing else, so results repeat bit for bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .aot_case import AotCase


@triton.jit(do_not_specialize=["nnz"])
def decode_csr_kernel(
    indptr_ptr,  # int64 [N + 1]
    indices_ptr,  # int32 [nnz]
    values_ptr,  # float [nnz]
    W_ptr,  # float [F, d], rows W_stride elements apart
    bias_ptr,  # float [d], read only if HAS_BIAS
    out_ptr,  # float [N, d], contiguous
    nnz,
    F,
    d,
    W_stride,
    HAS_BIAS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # Offsets into W_dec, out and the entries are 64-bit: F * d and N * d may exceed 2^31.
    n = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_row = columns < d
    lanes = tl.arange(0, BLOCK_K)

    # Damaged row pointers or feature ids must neither read foreign memory nor pass unnoticed: the row becomes NaN.
    start = tl.load(indptr_ptr + n)
    end = tl.load(indptr_ptr + n + 1)
    damaged = (start < 0) | (end > nnz) | (start > end)
    start = tl.where(damaged, 0, start)
    end = tl.where(damaged, 0, end)

    acc = tl.zeros((BLOCK_K, BLOCK_D), dtype=ACC)
    first = start
    while first < end:  # not `for ... in range(start, end)`: the interpreter of Triton 3.6 fails on it under numpy 2.4
        e = first + lanes
        live = e < end
        feature = tl.load(indices_ptr + e, mask=live, other=0)
        value = tl.load(values_ptr + e, mask=live, other=0).to(ACC)
        known = (feature >= 0) & (feature < F)
        value = tl.where(known, value, float("nan"))
        source = W_ptr + feature.to(tl.int64)[:, None] * W_stride + columns[None, :]
        # The upcast comes before any arithmetic: products are exact in ACC, and the interpreter cannot multiply bf16.
        w = tl.load(source, mask=(live & known)[:, None] & in_row[None, :], other=0).to(ACC)
        acc += value[:, None] * w
        first += BLOCK_K

    y = tl.sum(acc, axis=0)
    if HAS_BIAS:
        y += tl.load(bias_ptr + columns, mask=in_row, other=0).to(ACC)
    y = tl.where(damaged, float("nan"), y)
    tl.store(out_ptr + n * d + columns, y.to(out_ptr.dtype.element_ty), mask=in_row)


def launch_config(d: int, element_size: int) -> dict[str, int]:
    """Tile of a decode onto ``d`` columns of ``element_size`` bytes.

    A warp covers 32 * 16 bytes of a W_dec row with one 16-byte load per thread; narrow rows shrink the tile to the next
    power of two. Sixteen lanes over four warps leave each thread four gathers in flight.
    """
    full_warp = 32 * 16 // element_size
    return {"BLOCK_K": 16, "BLOCK_D": min(full_warp, max(16, triton.next_power_of_2(d))), "num_warps": 4}


def _case(W: str, value: str, bias: bool, d: int, aligned: bool) -> AotCase:
    size = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2}[W]
    config = launch_config(d, size)
    out = value if value == W else {"bf16": "fp32", "fp16": "fp32"}.get(W, W)
    pointers = {"indptr_ptr": "*i64", "indices_ptr": "*i32", "values_ptr": f"*{value}", "W_ptr": f"*{W}"}
    pointers |= {"bias_ptr": f"*{W}", "out_ptr": f"*{out}"}
    signature = pointers | {"nnz": "i64", "F": "i32", "d": "i32", "W_stride": "i32"}
    signature |= dict.fromkeys(("HAS_BIAS", "ACC", "BLOCK_K", "BLOCK_D"), "constexpr")
    constexprs = {
        "HAS_BIAS": bias,
        "ACC": tl.float64 if W == "fp64" else tl.float32,
        "BLOCK_K": config["BLOCK_K"],
        "BLOCK_D": config["BLOCK_D"],
    }
    return AotCase(
        label=f"W {W}, values {value}, d={d}{', bias' if bias else ''}",
        kernel=decode_csr_kernel,
        signature=signature,
        constexprs=constexprs,
        divisible_by_16=(*pointers, "d", "W_stride") if aligned else tuple(pointers),
        options={"num_warps": config["num_warps"]},
        wants_vector_loads=aligned,
    )


AOT_CASES = [
    _case("fp32", "fp32", bias=True, d=768, aligned=True),
    _case("fp32", "fp32", bias=False, d=33, aligned=False),
    _case("bf16", "fp32", bias=True, d=2304, aligned=True),
    _case("bf16", "bf16", bias=True, d=2304, aligned=True),
    _case("bf16", "bf16", bias=False, d=33, aligned=False),
    _case("fp16", "fp32", bias=True, d=768, aligned=True),
    _case("fp64", "fp64", bias=True, d=768, aligned=True),
]
