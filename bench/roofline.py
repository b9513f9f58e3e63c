"""The least time an op can take: its arithmetic and its compulsory bytes, at the speeds measured on this machine.

Compulsory bytes are those no implementation avoids: every input read once, every output written once, and of a
dictionary the rows that can be touched at all. A sum over phases that cannot overlap; within one, the slower of
arithmetic and memory counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

# Elements of each GEMM that the ceilings are taken from: (rows, inner, columns) of an encoder, not of a textbook.
CPU_GEMM = (512, 768, 8192)
GPU_GEMM = (8192, 2304, 32768)


@dataclass(frozen=True)
class Phase:
    """A part of an op that nothing else can run beside: `flops` operations and `bytes` moved."""

    name: str
    flops: float
    bytes: float


@dataclass(frozen=True)
class Ceilings:
    """What this machine reached in this run. GFLOP/s of a GEMM, GB/s (reads and writes) of a
    pass over memory."""

    gemm_fp32: float
    gemm_bf16: float
    stream: float

    def gemm(self, dtype: str) -> float:
        """The rate arithmetic is held against. The exact encoder of float32 weights may use a bfloat16 screen, so that
        both precisions are held against the faster GEMM; float64 has no ceiling here."""
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"roofline: no GEMM ceiling for {dtype}; measure one, or bench float32 or bfloat16")
        return max(self.gemm_fp32, self.gemm_bf16)

    def as_dict(self) -> dict[str, float]:
        return {name: round(value, 2) for name, value in asdict(self).items()}


def cost(op: str, shape: Mapping[str, int], size: int = 4) -> list[Phase]:
    """The phases of `op` at `shape`, elements of `size` bytes, ids of 4.

    Names in a shape: N rows (tokens), d input and output width, F features, k active ones a row; for the contraction
    B targets, P positions (over all layers), k active features a position; for whole runs L layers.
    Optimizer state is always float32.

    Raises:
        ValueError: no such op, or a shape that lacks a dimension.
    """
    entry = size + 4
    try:
        if op == "contract":
            B, P, d, k = (shape[name] for name in "BPdk")
            E = P * k
            # Decoder rows and gradients are read, edges are written in float32.
            return [Phase("contract", 2.0 * B * E * d, size * (min(E, shape["F"]) * d + B * P * d) + 4.0 * B * E)]
        N, F, k = shape["N"], shape["F"], shape["k"]
        used = min(F, N * k)
        if op == "select":
            return [Phase("select", 0.0, size * N * F + entry * N * k)]
        d = shape["d"]
        if op == "harvest":
            # Projections of attention and MLP, at the usual four widths; not the scores, nor the unembedding.
            return [Phase("model", 24.0 * N * d * d * shape["L"], 12.0 * d * d * shape["L"] * size)]
        if op == "train":
            return cost("harvest", shape, size) + shape["L"] * cost("step", shape, size)
        encode = Phase("encode", 2.0 * N * d * F, size * (N * d + F * d + F) + entry * N * k)
        decode = Phase("decode", 2.0 * N * k * d, size * (used * d + N * d) + entry * N * k)
        # <g, W_dec>, dW_dec and dW_enc; both gradients are written, dense.
        inputs = size * (2 * N * d + used * d) + entry * N * k
        backward = Phase("backward", 6.0 * N * k * d, inputs + 4.0 * (2 * F * d + F))
        # Weight and two moments are read and written, and a bfloat16 shadow is written: 26 B a parameter.
        update = Phase("update", 0.0, 26.0 * (2 * F * d + F))
        if op in ("topk_encode", "encode_relu", "encode_jumprelu"):
            return [encode]
        if op == "decode":
            return [decode]
        if op == "residual":
            # Decode, read the target, and take k inner products with the rows that are already there.
            return [Phase("residual", 2 * decode.flops, decode.bytes + size * (N * d + N * k) + 8.0 * N)]
        if op == "backward":
            return [backward]
        if op == "update":
            sums = Phase("gradient", 4.0 * N * k * d, size * 2 * N * d + (entry + 4) * N * k)
            return [sums, update]
        if op == "step":
            # The gradients go from registers into the update: only <g, W_dec> and the two sums are left of backward.
            return [encode, decode, Phase("backward", backward.flops, inputs), update]
    except KeyError as missing:
        raise ValueError(f"roofline: {op} needs the dimension {missing}, got {dict(shape)}") from None
    raise ValueError(f"roofline: no op {op!r}; add its arithmetic and bytes to bench/roofline.py")


def floor_ms(op: str, shape: Mapping[str, int], dtype: str, ceilings: Ceilings) -> float:
    """Milliseconds below which `op` cannot get on a machine with these ceilings."""
    size = 4 if dtype == "float32" else 2
    rate, stream = ceilings.gemm(dtype) * 1e9, ceilings.stream * 1e9
    return 1e3 * sum(max(phase.flops / rate, phase.bytes / stream) for phase in cost(op, shape, size))


def hold_against(rows: list[dict[str, Any]], ceilings: Ceilings) -> None:
    """Give timed rows the floor of these ceilings."""
    for row in rows:
        if row["status"] == "ok":
            row["floor_ms"] = floor_ms(row["op"], row["shape"], row["dtype"], ceilings)
            row["fraction_of_floor"] = row["floor_ms"] / row["ms"]


# ---- ceilings --------------------------------------------------------------------------------------------------------


def measure_ceilings(device: torch.device, tiny: bool = False) -> Ceilings:
    """GEMM and memory speed of `device` under the thread count set now: the best of a few, as a ceiling should be."""
    rows, inner, columns = (64, 64, 64) if tiny else GPU_GEMM if device.type == "cuda" else CPU_GEMM

    def gemm(dtype: torch.dtype) -> float:
        a = torch.randn(rows, inner, device=device).to(dtype)
        b = torch.randn(columns, inner, device=device).to(dtype)
        out = torch.empty(rows, columns, device=device, dtype=dtype)
        return 2e-9 * rows * inner * columns / _best(lambda: torch.mm(a, b.T, out=out), device)

    elements = 2**16 if tiny else 2**28 if device.type == "cuda" else 2**25
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    # A CPU also reads what a copy is about to overwrite; in place there is nothing but one read and one write.
    fastest = min(_best(lambda: target.copy_(source), device), _best(source.neg_, device))
    return Ceilings(
        gemm_fp32=gemm(torch.float32),
        gemm_bf16=gemm(torch.bfloat16),
        stream=2e-9 * source.nbytes / fastest,
    )


def best_of(*measured: Ceilings) -> Ceilings:
    """The ceiling of several looks at the same machine."""
    return Ceilings(*(max(getattr(c, name) for c in measured) for name in ("gemm_fp32", "gemm_bf16", "stream")))


def _best(run: Callable[[], Tensor], device: torch.device, repeats: int = 7) -> float:
    """Seconds of the fastest of `repeats` runs, on a GPU the median of five of each."""
    run()
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            times.append(statistics.median(_event_seconds(run) for _ in range(5)))
        else:
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    return min(times)


def _event_seconds(run: Callable[[], Tensor]) -> float:
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3
