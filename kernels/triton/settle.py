"""From rounded pre-activations to the exact top k: which candidates may belong to it, what they are exactly, who wins.

The GEMM of an encoder gives each pre-activation within a known error. `narrow_kernel` keeps the candidates of a row
that may be among its k largest under that error, `rescore_kernel` evaluates those again in float64, rounded once, and
`pick_kernel` takes the k best. Where features outside the candidates might compete, the row is uncertain, and
`exhaust_kernel` evaluates all of its features; it leaves the other rows alone.

Order is that of one int64 a candidate: the float's bits, made monotone, above the complement of the feature id. So NaN
is above all, and ties go to the lower id.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .aot_case import AotCase

NOTHING = tl.constexpr(-(2**63))  # below the key of every feature


@triton.jit
def _key(value, feature):
    """The order of a pre-activation in its row, as an int64."""
    value = tl.where(value == 0, 0.0, value)  # both zeros are one number
    bits = value.to(tl.int32, bitcast=True)
    bits = tl.where(value != value, 0x7FFFFFFF, bits ^ ((bits >> 31) & 0x7FFFFFFF))
    return (bits.to(tl.int64) << 32) | (0x7FFFFFFF - feature).to(tl.int64)


@triton.jit
def _value(key):
    """The float32 in a key."""
    bits = (key >> 32).to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _feature(key):
    return 0x7FFFFFFF - (key & 0x7FFFFFFF).to(tl.int32)


@triton.jit
def _store_slots(best, values_ptr, indices_ptr, row, k, RELU: tl.constexpr, BLOCK: tl.constexpr):
    """Write the first k of the descending keys `best` in ascending order of feature id."""
    lanes = tl.arange(0, BLOCK)
    value, feature = _value(best), _feature(best)
    if RELU:
        value = tl.where(value <= 0, 0.0, value)
    bits = value.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
    slot = (tl.where(lanes < k, feature, 0x7FFFFFFF).to(tl.int64) << 32) | bits
    slot = tl.sort(slot)
    tl.store(indices_ptr + row * k + lanes, (slot >> 32).to(tl.int32), mask=lanes < k)
    tl.store(values_ptr + row * k + lanes, slot.to(tl.int32).to(tl.float32, bitcast=True), mask=lanes < k)


@triton.jit(do_not_specialize=["C", "k"])
def narrow_kernel(
    candidates_ptr,  # float [N, C]: the C largest of each row, as stored
    features_ptr,  # int32 [N, C]
    slack_ptr,  # float32 [N]: absolute part of the error
    live_ptr,  # int32 [N, C]: ids from the largest candidate down, -1 for those that cannot be among the k largest
    uncertain_ptr,  # int8 [N]: whether features outside the candidates can be
    C,
    k,
    relative,  # part of the error that grows with the value, as stored
    COMPLETE: tl.constexpr,  # the candidates are all features there are
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    inside = lanes < C
    value = tl.load(candidates_ptr + row * C + lanes, mask=inside, other=0).to(tl.float32)
    feature = tl.load(features_ptr + row * C + lanes, mask=inside, other=0)
    keys = tl.sort(tl.where(inside, _key(value, feature), NOTHING), descending=True)
    kth = _value(tl.max(tl.where(lanes == k - 1, keys, NOTHING)))
    last = _value(tl.max(tl.where(lanes == C - 1, keys, NOTHING)))

    slack = tl.load(slack_ptr + row)
    floor = kth - (relative * tl.abs(kth) + slack)
    # Written so that NaN keeps a candidate, and makes a row uncertain. What lives comes first: `rescore_kernel` then
    # finds whole tiles of it, and whole tiles with nothing to do.
    value = _value(keys)
    beaten = value + (relative * tl.abs(value) + slack) < floor
    tl.store(live_ptr + row * C + lanes, tl.where(beaten, -1, _feature(keys)), mask=inside)
    reach = relative * tl.abs(last) + slack
    # With no error at all the stored values are the exact ones, ties included.
    settled = (last + reach < floor) | ((reach == 0) & (floor == kth))
    tl.store(uncertain_ptr + row, tl.where(settled | COMPLETE, 0, 1).to(tl.int8))


@triton.jit
def _preactivations(x_row, W_row, read, bias_ptr, feature, d, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr):
    """x W^T + b of BLOCK_F features in float64, rounded once to float32."""
    acc = tl.zeros((BLOCK_F, BLOCK_D), dtype=tl.float64)
    column = 0
    while column < d:
        columns = column + tl.arange(0, BLOCK_D)
        inside = columns < d
        x = tl.load(x_row + columns, mask=inside, other=0).to(tl.float64)
        w = tl.load(W_row + columns[None, :], mask=read[:, None] & inside[None, :], other=0).to(tl.float64)
        acc += x[None, :] * w
        column += BLOCK_D
    return (tl.sum(acc, axis=1) + tl.load(bias_ptr + feature, mask=read, other=0).to(tl.float64)).to(tl.float32)


@triton.jit(do_not_specialize=["C"])
def rescore_kernel(
    live_ptr,  # int32 [N, C], -1 for a candidate to leave out
    x_ptr,  # float [N, d], rows x_stride elements apart
    W_ptr,  # float [F, d], rows W_stride elements apart
    bias_ptr,  # float [F]
    exact_ptr,  # float32 [N, C]
    C,
    d,
    x_stride,
    W_stride,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    blocks = tl.cdiv(C, BLOCK_F)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    lanes = tl.program_id(0) % blocks * BLOCK_F + tl.arange(0, BLOCK_F)
    feature = tl.load(live_ptr + row * C + lanes, mask=lanes < C, other=-1)
    read = feature >= 0
    if tl.max(feature) >= 0:
        W_row = W_ptr + feature.to(tl.int64)[:, None] * W_stride
        exact = _preactivations(x_ptr + row * x_stride, W_row, read, bias_ptr, feature, d, BLOCK_F, BLOCK_D)
        tl.store(exact_ptr + row * C + lanes, exact, mask=read)


@triton.jit(do_not_specialize=["C", "k"])
def pick_kernel(
    live_ptr,  # int32 [N, C]
    exact_ptr,  # float32 [N, C], read where live
    values_ptr,  # float32 [N, k]
    indices_ptr,  # int32 [N, k]
    C,
    k,
    RELU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    feature = tl.load(live_ptr + row * C + lanes, mask=lanes < C, other=-1)
    value = tl.load(exact_ptr + row * C + lanes, mask=feature >= 0, other=0)
    best = tl.sort(tl.where(feature >= 0, _key(value, feature), NOTHING), descending=True)
    _store_slots(best, values_ptr, indices_ptr, row, k, RELU, BLOCK)


@triton.jit(do_not_specialize=["k"])
def exhaust_kernel(
    uncertain_ptr,  # int8 [N]
    x_ptr,  # float [N, d], rows x_stride elements apart
    W_ptr,  # float [F, d], rows W_stride elements apart
    bias_ptr,  # float [F]
    values_ptr,  # float32 [N, k]
    indices_ptr,  # int32 [N, k]
    F,
    d,
    k,
    x_stride,
    W_stride,
    RELU: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    if tl.load(uncertain_ptr + row) != 0:
        best = tl.full((BLOCK,), NOTHING, tl.int64)
        first = 0
        while first < F:
            feature = first + tl.arange(0, BLOCK)
            read = feature < F
            W_row = W_ptr + feature.to(tl.int64)[:, None] * W_stride
            exact = _preactivations(x_ptr + row * x_stride, W_row, read, bias_ptr, feature, d, BLOCK, BLOCK_D)
            keys = tl.where(read, _key(exact, feature), NOTHING)
            # Descending against ascending: the larger of each pair are the BLOCK largest of both (bitonic merge).
            best = tl.sort(tl.maximum(best, tl.sort(keys)), descending=True)
            first += BLOCK
        _store_slots(best, values_ptr, indices_ptr, row, k, RELU, BLOCK)


def settle_config(slots: int) -> dict[str, int]:
    """Block of the row kernels for `slots` candidates: all of them at once."""
    return {"BLOCK": max(16, triton.next_power_of_2(slots)), "num_warps": 1 if slots <= 256 else 4}


def rescore_config(element_size: int) -> dict[str, int]:
    """A row of the tile is what a warp reads with one 16-byte load per thread."""
    return {"BLOCK_F": 16, "BLOCK_D": 32 * 16 // element_size, "num_warps": 4}


def exhaust_config(k: int) -> dict[str, int]:
    """As many features at a time as slots, so that one exchange merges them; columns as registers allow."""
    BLOCK = max(64, triton.next_power_of_2(k))
    return {"BLOCK": BLOCK, "BLOCK_D": max(8, 4096 // BLOCK), "num_warps": 8}


_ROWS = {"d": "i32", "x_stride": "i64", "W_stride": "i64"}


def _case(
    label: str, kernel: object, pointers: dict[str, str], numbers: dict[str, str], config: dict[str, int], **flags: bool
) -> AotCase:
    large = config.get("BLOCK", 0) > 128  # sorts compile slowly: the large ones stand for all generations
    constexprs = flags | {name: value for name, value in config.items() if name != "num_warps"}
    return AotCase(
        label=label,
        kernel=kernel,
        signature=pointers | numbers | dict.fromkeys(constexprs, "constexpr"),
        constexprs=constexprs,
        divisible_by_16=(*pointers, *(name for name in numbers if name in _ROWS)),
        options={"num_warps": config["num_warps"]},
        wants_vector_loads=kernel is rescore_kernel,
        archs=(90,) if large else (80, 90, 100),
    )


def _cases() -> list[AotCase]:
    candidates = {"candidates_ptr": "", "features_ptr": "*i32", "slack_ptr": "*fp32", "live_ptr": "*i32"}
    candidates |= {"uncertain_ptr": "*i8"}
    slots = {"values_ptr": "*fp32", "indices_ptr": "*i32"}
    found = []
    for C in (96, 192, 320):
        narrow = {"C": "i32", "k": "i32", "relative": "fp32"}
        for dtype in ("bf16", "fp16"):
            pointers = candidates | {"candidates_ptr": f"*{dtype}"}
            found.append(_case(f"{dtype}, C={C}", narrow_kernel, pointers, narrow, settle_config(C), COMPLETE=False))
        pick = {"live_ptr": "*i32", "exact_ptr": "*fp32"} | slots
        found.append(_case(f"C={C}", pick_kernel, pick, {"C": "i32", "k": "i32"}, settle_config(C), RELU=True))
    for dtype, size in (("bf16", 2), ("fp32", 4)):
        rows = {"x_ptr": f"*{dtype}", "W_ptr": f"*{dtype}", "bias_ptr": "*fp32"}
        pointers = {"live_ptr": "*i32"} | rows | {"exact_ptr": "*fp32"}
        found.append(_case(dtype, rescore_kernel, pointers, {"C": "i32"} | _ROWS, rescore_config(size)))
        for k in (32, 256):
            pointers, numbers = {"uncertain_ptr": "*i8"} | rows | slots, {"F": "i32", "d": "i32", "k": "i32"} | _ROWS
            found.append(_case(f"{dtype}, k={k}", exhaust_kernel, pointers, numbers, exhaust_config(k), RELU=True))
    return found


AOT_CASES = _cases()
