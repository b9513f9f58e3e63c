"""Rows rounded to float16, and by how much: what a float16 GEMM in place of a float32 one may be wrong by.

    half[n] = float16(scale * t[n])        norms[n] = ||scale * t[n]||        rests[n] = ||scale * t[n] - half[n]||

A norm is zero only where all of its row is: one that would vanish is kept at a number that is nothing beside others.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .aot_case import AotCase

LEAST_NORM = tl.constexpr(1e-30)


@triton.jit
def round_rows_kernel(
    t_ptr,  # float32 [n, d], rows t_stride elements apart
    scale_ptr,  # float32 []
    half_ptr,  # float16 [n, d], contiguous
    norms_ptr,  # float32 [n]
    rests_ptr,  # float32 [n]
    d,
    t_stride,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    scale = tl.load(scale_ptr)
    squares = tl.zeros((BLOCK,), tl.float32)
    rests = tl.zeros((BLOCK,), tl.float32)
    filled = tl.zeros((BLOCK,), tl.int32)
    first = 0
    while first < d:
        columns = first + tl.arange(0, BLOCK)
        inside = columns < d
        t = tl.load(t_ptr + row * t_stride + columns, mask=inside, other=0)
        scaled = t * scale
        half = scaled.to(tl.float16)
        tl.store(half_ptr + row * d + columns, half, mask=inside)
        rest = scaled - half.to(tl.float32)
        squares += scaled * scaled
        rests += rest * rest
        filled |= (t != 0).to(tl.int32)
        first += BLOCK
    norm = tl.sqrt(tl.sum(squares))
    tl.store(norms_ptr + row, tl.where((tl.max(filled) > 0) & (norm < LEAST_NORM), LEAST_NORM, norm))
    tl.store(rests_ptr + row, tl.sqrt(tl.sum(rests)))


def round_rows_config(d: int) -> dict[str, int]:
    """Block of rows of width d: a row at once, up to four 16-byte loads a thread."""
    return {"BLOCK": min(2048, max(128, triton.next_power_of_2(d))), "num_warps": 4}


def _case(d: int, aligned: bool) -> AotCase:
    config = round_rows_config(d)
    pointers = {"t_ptr": "*fp32", "scale_ptr": "*fp32", "half_ptr": "*fp16", "norms_ptr": "*fp32", "rests_ptr": "*fp32"}
    return AotCase(
        label=f"d={d}",
        kernel=round_rows_kernel,
        signature=pointers | {"d": "i32", "t_stride": "i64", "BLOCK": "constexpr"},
        constexprs={"BLOCK": config["BLOCK"]},
        divisible_by_16=(*pointers, "d", "t_stride") if aligned else tuple(pointers),
        options={"num_warps": config["num_warps"]},
        wants_vector_loads=aligned and config["BLOCK"] == 2048,
    )


AOT_CASES = [_case(768, aligned=True), _case(2304, aligned=True), _case(33, aligned=False)]
