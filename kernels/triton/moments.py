"""Column sums of y - center, and the sum of its squares, in float64: what a running variance is updated with.

A program adds up ROWS rows of BLOCK_D columns; what the programs found is added up afterwards, in one order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .aot_case import AotCase


@triton.jit(do_not_specialize=["N"])
def column_moments_kernel(
    y_ptr,  # float [N, d], rows y_stride elements apart
    center_ptr,  # float64 [d]
    sums_ptr,  # float64 [ceil(N / ROWS), d]
    squares_ptr,  # float64 [ceil(N / ROWS), ceil(d / BLOCK_D)]
    N,
    d,
    y_stride,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    chunk = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < d
    center = tl.load(center_ptr + columns, mask=inside, other=0)[None, :]
    sums = tl.zeros((BLOCK_N, BLOCK_D), tl.float64)
    squares = tl.zeros((BLOCK_N, BLOCK_D), tl.float64)
    step = 0
    while step < ROWS:
        rows = chunk * ROWS + step + tl.arange(0, BLOCK_N)
        read = (rows < N)[:, None] & inside[None, :]
        y = tl.load(y_ptr + rows[:, None] * y_stride + columns[None, :], mask=read, other=0)
        off = tl.where(read, y.to(tl.float64) - center, 0.0)
        sums += off
        squares += off * off
        step += BLOCK_N
    tl.store(sums_ptr + chunk * d + columns, tl.sum(sums, axis=0), mask=inside)
    tl.store(squares_ptr + chunk * tl.num_programs(1) + tl.program_id(1), tl.sum(squares))


def column_moments_config() -> dict[str, int]:
    return {"ROWS": 64, "BLOCK_N": 8, "BLOCK_D": 128, "num_warps": 4}


def _case(dtype: str, aligned: bool = True) -> AotCase:
    config = column_moments_config()
    constexprs = {name: value for name, value in config.items() if name != "num_warps"}
    pointers = {"y_ptr": f"*{dtype}", "center_ptr": "*fp64", "sums_ptr": "*fp64", "squares_ptr": "*fp64"}
    numbers = {"N": "i32", "d": "i32", "y_stride": "i64"}
    return AotCase(
        label=dtype + ("" if aligned else ", odd strides"),
        kernel=column_moments_kernel,
        signature=pointers | numbers | dict.fromkeys(constexprs, "constexpr"),
        constexprs=constexprs,
        divisible_by_16=(*pointers, "d", "y_stride") if aligned else tuple(pointers),
        options={"num_warps": config["num_warps"]},
    )


AOT_CASES = [_case("fp32"), _case("fp64"), _case("fp32", aligned=False)]
