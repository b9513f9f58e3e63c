"""Encoder GEMM that also says where the large pre-activations are.

    h = x W_enc^T + b_enc                   products and sums in float32, stored in the dtype of h
    maxima[n, t] = max of h[n, 64 t : 64 t + 64]        of what is stored; NaN where one of them is

The k-th largest of a row's maxima is a lower bound of its k-th largest pre-activation, so a select has to read only the
tiles whose maximum reaches it. Programs are persistent: each makes output tiles in an order in which neighbours share
rows of x and W_enc in L2. `encode_gemm_descriptor_kernel` moves tiles with the tensor memory accelerator of Hopper and
later; `encode_gemm_kernel` takes any strides and any GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .aot_case import AotCase

MAXIMA_WIDTH = 64  # features under one maximum


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _corner(tile, row_tiles, feature_tiles, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """First row and first feature of an output tile: GROUP row tiles go through the features together."""
    group = tile // (GROUP * feature_tiles)
    first = group * GROUP
    height = tl.minimum(row_tiles - first, GROUP)
    inside = tile - group * GROUP * feature_tiles
    return (first + inside % height) * BLOCK_M, (inside // height) * BLOCK_N


@triton.jit
def _finish(
    acc,
    bias_ptr,
    maxima_ptr,
    row,
    feature,
    N,
    F,
    STORED: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Add the bias, round to what will be stored, and write the maxima of that."""
    features = feature + tl.arange(0, BLOCK_N)
    acc += tl.load(bias_ptr + features, mask=features < F, other=0).to(tl.float32)[None, :]
    stored = acc.to(STORED)
    # Once more in float32: neither the interpreter nor older GPUs compare bfloat16.
    seen = tl.where((features < F)[None, :], stored.to(tl.float32), float("-inf"))
    maxima = tl.reduce(tl.reshape(seen, (BLOCK_M, BLOCK_N // WIDTH, WIDTH)), 2, _larger)

    rows = row + tl.arange(0, BLOCK_M)
    tiles = feature // WIDTH + tl.arange(0, BLOCK_N // WIDTH)
    n_tiles = tl.cdiv(F, WIDTH)
    target = maxima_ptr + rows.to(tl.int64)[:, None] * n_tiles + tiles[None, :]
    tl.store(target, maxima.to(STORED), mask=(rows < N)[:, None] & (tiles < n_tiles)[None, :])
    return stored


@triton.jit(do_not_specialize=["N"])
def encode_gemm_descriptor_kernel(
    x_desc,  # [N, d] in blocks [BLOCK_M, BLOCK_K]
    W_desc,  # [F, d] in blocks [BLOCK_N, BLOCK_K]
    bias_ptr,  # float [F]
    h_desc,  # [N, F] in blocks [BLOCK_M, BLOCK_N]
    maxima_ptr,  # like h, [N, ceil(F / WIDTH)], contiguous
    N,
    F,
    d,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    FLATTEN: tl.constexpr,
):
    row_tiles, feature_tiles = tl.cdiv(N, BLOCK_M), tl.cdiv(F, BLOCK_N)
    # Flattened, the loads of the next tile start before the last one is stored, for more registers.
    for tile in tl.range(tl.program_id(0), row_tiles * feature_tiles, tl.num_programs(0), flatten=FLATTEN):
        row, feature = _corner(tile, row_tiles, feature_tiles, BLOCK_M, BLOCK_N, GROUP)
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for column in tl.range(0, d, BLOCK_K):  # beyond the edges a descriptor reads zeros
            x = x_desc.load([row, column])
            w = W_desc.load([feature, column])
            acc = tl.dot(x, w.T, acc)
        stored = _finish(acc, bias_ptr, maxima_ptr, row, feature, N, F, h_desc.dtype, WIDTH, BLOCK_M, BLOCK_N)
        h_desc.store([row, feature], stored)


@triton.jit(do_not_specialize=["N"])
def encode_gemm_kernel(
    x_ptr,  # [N, d], rows x_stride elements apart
    W_ptr,  # [F, d], rows W_stride elements apart
    bias_ptr,  # float [F]
    h_ptr,  # [N, F], rows h_stride elements apart
    maxima_ptr,  # like h, [N, ceil(F / WIDTH)], contiguous
    N,
    F,
    d,
    x_stride,
    W_stride,
    h_stride,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    # Offsets are 64-bit: N * F and F * d may exceed 2^31.
    row_tiles, feature_tiles = tl.cdiv(N, BLOCK_M), tl.cdiv(F, BLOCK_N)
    for tile in tl.range(tl.program_id(0), row_tiles * feature_tiles, tl.num_programs(0)):
        row, feature = _corner(tile, row_tiles, feature_tiles, BLOCK_M, BLOCK_N, GROUP)
        rows, features = row + tl.arange(0, BLOCK_M), feature + tl.arange(0, BLOCK_N)
        # Rows past the end repeat the last one, which costs no mask; nothing of them is stored.
        x_row = x_ptr + tl.minimum(rows, N - 1).to(tl.int64)[:, None] * x_stride
        W_row = W_ptr + tl.minimum(features, F - 1).to(tl.int64)[:, None] * W_stride
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for column in tl.range(0, d, BLOCK_K):
            columns = column + tl.arange(0, BLOCK_K)
            x = tl.load(x_row + columns[None, :], mask=(columns < d)[None, :], other=0)
            w = tl.load(W_row + columns[None, :], mask=(columns < d)[None, :], other=0)
            acc = tl.dot(x, w.T, acc)
        STORED: tl.constexpr = h_ptr.dtype.element_ty
        stored = _finish(acc, bias_ptr, maxima_ptr, row, feature, N, F, STORED, WIDTH, BLOCK_M, BLOCK_N)
        target = h_ptr + rows.to(tl.int64)[:, None] * h_stride + features[None, :]
        tl.store(target, stored, mask=(rows < N)[:, None] & (features < F)[None, :])


def encode_gemm_config(descriptors: bool) -> dict[str, int]:
    """Tile of the GEMM. Without descriptors the addresses of a tile lie in registers, which leaves fewer for sums."""
    if not descriptors:
        return {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64, "GROUP": 8, "num_warps": 8, "num_stages": 3}
    tile = {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 64, "GROUP": 8, "FLATTEN": True}
    return tile | {"num_warps": 8, "num_stages": 3}


def _case(
    dtype: str, arch: int, descriptors: bool = True, aligned: bool = True, tile: dict[str, int] | None = None
) -> AotCase:
    config = tile or encode_gemm_config(descriptors)
    constexprs = {"WIDTH": MAXIMA_WIDTH}
    constexprs |= {name: value for name, value in config.items() if name not in ("num_warps", "num_stages")}
    M, N, K = (config[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
    numbers = {"N": "i32", "F": "i32", "d": "i32"}
    if descriptors:
        tensors = {
            "x_desc": f"tensordesc<{dtype}[{M}, {K}]>",
            "W_desc": f"tensordesc<{dtype}[{N}, {K}]>",
            "bias_ptr": "*fp32",
            "h_desc": f"tensordesc<{dtype}[{M}, {N}]>",
            "maxima_ptr": f"*{dtype}",
        }
    else:
        tensors = {"x_ptr": f"*{dtype}", "W_ptr": f"*{dtype}", "bias_ptr": "*fp32", "h_ptr": f"*{dtype}"}
        tensors |= {"maxima_ptr": f"*{dtype}"}
        numbers |= {"x_stride": "i64", "W_stride": "i64", "h_stride": "i64"}
    pointers = [name for name in tensors if name.endswith("_ptr")]
    others = [name for name in numbers if name != "N"] if aligned else []
    how = f"descriptors, {M} x {N}" if descriptors else "pointers" + ("" if aligned else ", odd strides")
    how += f", {config['num_warps']} warps" + (", flat" if config.get("FLATTEN") else "")
    return AotCase(
        label=f"{dtype}, {how}",
        kernel=encode_gemm_descriptor_kernel if descriptors else encode_gemm_kernel,
        signature=tensors | numbers | dict.fromkeys(constexprs, "constexpr"),
        constexprs=constexprs,
        divisible_by_16=(*pointers, *others),
        options={"num_warps": config["num_warps"], "num_stages": config["num_stages"]},
        wants_hgmma=True,
        wants_bulk_copies=descriptors,
        archs=(80,) if arch == 80 else (90, 100),
    )


# What `bench/tune_encoder.py` chooses from.
ENCODE_TILES = [
    {"BLOCK_M": M, "BLOCK_N": N, "BLOCK_K": 64, "GROUP": 8, "FLATTEN": flat, "num_warps": warps, "num_stages": stages}
    for M, N, warps, stages in [(128, 256, 8, 3), (128, 128, 4, 2), (128, 128, 8, 3), (256, 128, 8, 3)]
    for flat in (True, False)
]

AOT_CASES = [
    _case("bf16", arch=90),
    *(_case("fp16", arch=90, tile=tile) for tile in ENCODE_TILES),
    *(
        _case(dtype, arch=arch, descriptors=False, aligned=aligned)
        for arch in (80, 90)
        for dtype, aligned in (("bf16", True), ("bf16", False), ("fp16", True))
    ),
]
