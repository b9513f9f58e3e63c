"""Attribution edges of a batch of targets: a GEMM grouped by position whose right operand is gathered.

    out[b, e] = values[e] * sum over layers l of <G[l, b, row of e, :], W[indices[e], l, :]>

One program makes BLOCK_B targets by BLOCK_E entries of one position: the decoder rows of the entries are gathered
straight into the tiles of the matrix units, and neither they nor the gradients are ever copied. A dictionary that
writes to one layer has one l; a cross-layer one adds up its target layers in the same accumulator.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .aot_case import AotCase
from .entry_tiles import entry_tile


@triton.jit(do_not_specialize=["P", "nnz", "B", "L", "out_stride"])
def contract_kernel(
    indptr_ptr,  # int64 [P + 1]
    indices_ptr,  # int32 [nnz]
    values_ptr,  # float [nnz]
    G_ptr,  # float [L, B, P, d]
    W_ptr,  # like G, [F, L, d]
    out_ptr,  # float [B, nnz], rows out_stride elements apart
    P,
    nnz,
    F,
    B,
    L,
    d,
    G_layer,  # strides in elements; columns are contiguous
    G_batch,
    G_position,
    W_feature,
    W_layer,
    out_stride,
    ADD: tl.constexpr,  # add to out
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # Offsets are 64-bit: B * P * d, F * d and B * nnz may exceed 2^31.
    # Programs that run together share a tile of entries, so that decoder rows are read from L2 but once.
    batch_tiles = tl.cdiv(B, BLOCK_B)
    batch = tl.program_id(0) % batch_tiles * BLOCK_B + tl.arange(0, BLOCK_B)
    position, start, end, damaged = entry_tile(indptr_ptr, P, nnz, tl.program_id(0) // batch_tiles, BLOCK_E)
    if start < end:
        e = start + tl.arange(0, BLOCK_E)
        live = e < end
        feature = tl.load(indices_ptr + e, mask=live, other=0)
        known = (feature >= 0) & (feature < F) & (damaged == 0)
        feature = tl.where(known, feature, 0)

        G_row = G_ptr + tl.minimum(batch, B - 1).to(tl.int64)[:, None] * G_batch + position.to(tl.int64) * G_position
        W_row = W_ptr + feature.to(tl.int64)[:, None] * W_feature
        acc = tl.zeros((BLOCK_B, BLOCK_E), dtype=ACC)
        steps = tl.cdiv(d, BLOCK_K)
        for step in tl.range(0, L * steps):
            layer = (step // steps).to(tl.int64)
            columns = step % steps * BLOCK_K + tl.arange(0, BLOCK_K)
            inside = (columns < d)[None, :]
            g = tl.load(G_row + layer * G_layer + columns[None, :], mask=inside, other=0)
            w = tl.load(W_row + layer * W_layer + columns[None, :], mask=inside, other=0)
            acc = tl.dot(g, w.T, acc, input_precision=PRECISION, out_dtype=ACC)

        value = tl.load(values_ptr + e, mask=live, other=0).to(ACC)
        edges = acc * tl.where(known, value, float("nan"))[None, :]
        target = out_ptr + batch.to(tl.int64)[:, None] * out_stride + e[None, :]
        stored = (batch < B)[:, None] & live[None, :]
        if ADD:
            edges += tl.load(target, mask=stored, other=0).to(ACC)
        tl.store(target, edges.to(out_ptr.dtype.element_ty), mask=stored)


def contract_config(dtype: str, targets: int, entries_per_position: float) -> dict[str, int | str]:
    """Tile of a contraction of `targets` by about `entries_per_position`, for operands "bf16", "fp16", "fp32", "fp64".

    float32 goes through the tensor cores in three parts (tf32x3), which keeps the precision of float32.
    """
    if dtype == "fp64":
        return {"BLOCK_B": 32, "BLOCK_E": 32, "BLOCK_K": 16, "PRECISION": "ieee", "num_warps": 8, "num_stages": 2}
    BLOCK_E = 64 if entries_per_position > 32 else 32
    BLOCK_B, num_warps = (128, 8) if targets > 64 else (64, 4)
    config = {"BLOCK_B": BLOCK_B, "BLOCK_E": BLOCK_E, "num_warps": num_warps, "num_stages": 3}
    if dtype == "fp32":
        return config | {"BLOCK_B": 64, "BLOCK_E": 32, "BLOCK_K": 32, "PRECISION": "tf32x3", "num_warps": 4}
    return config | {"BLOCK_K": 64, "PRECISION": "ieee"}


def _case(dtype: str, targets: int, per_position: int, aligned: bool = True) -> AotCase:
    config = contract_config(dtype, targets, per_position)
    other = "fp64" if dtype == "fp64" else "fp32"
    pointers = {"indptr_ptr": "*i64", "indices_ptr": "*i32", "values_ptr": f"*{other}", "G_ptr": f"*{dtype}"}
    pointers |= {"W_ptr": f"*{dtype}", "out_ptr": f"*{other}"}
    numbers = {"P": "i32", "nnz": "i64", "F": "i32", "B": "i32", "L": "i32", "d": "i32"}
    strides = dict.fromkeys(("G_layer", "G_batch", "G_position", "W_feature", "W_layer", "out_stride"), "i64")
    constexprs = {"ADD": False, "ACC": tl.float64 if dtype == "fp64" else tl.float32}
    constexprs |= {name: config[name] for name in ("PRECISION", "BLOCK_B", "BLOCK_E", "BLOCK_K")}
    rows = ("d", "G_layer", "G_batch", "G_position", "W_feature", "W_layer") if aligned else ()
    return AotCase(
        label=f"{dtype}, {targets} targets, {per_position} a position{'' if aligned else ', odd strides'}",
        kernel=contract_kernel,
        signature=pointers | numbers | strides | dict.fromkeys(constexprs, "constexpr"),
        constexprs=constexprs,
        divisible_by_16=(*pointers, *rows),
        options={"num_warps": config["num_warps"], "num_stages": config["num_stages"]},
        wants_hgmma=dtype != "fp64",
    )


AOT_CASES = [
    _case("bf16", targets=256, per_position=64),
    _case("bf16", targets=256, per_position=32),
    _case("bf16", targets=64, per_position=32),
    _case("bf16", targets=64, per_position=32, aligned=False),
    _case("fp32", targets=256, per_position=64),
    _case("fp64", targets=256, per_position=64),
]
