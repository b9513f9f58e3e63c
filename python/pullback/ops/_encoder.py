"""The encoders in row chunks, so that the N x F matrix never exists: on a GPU, and in float64 on a CPU.

Float32 on a CPU has its own, exact ones: `cpu.encoders`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from . import dispatch, reference
from .cpu import encoders as screened
from .gpu import encoder as gpu_encoder
from .sparse import SparseActivations

# Pre-activations held at a time: the product of a row chunk and F stays at or below it.
CPU_SCRATCH = 2**24
GPU_SCRATCH = 2**26
# The fewest and most rows of a chunk.
CPU_ROWS = 64, 512
GPU_ROWS = 256, 8192


def topk_encode(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, relu: bool, shadow: screened.Factor | None = None
) -> tuple[Tensor, Tensor]:
    """Top-k of x @ W_enc.T + b_enc. The answer is that of float64 accumulation, rounded once: see `_screened` and
    `ops.gpu.encoder`; for float64, and for many slots on a GPU, it is the top-k of what the GEMM gave."""
    if dispatch.forced() == "reference":
        return reference.topk_encode(x, W_enc, b_enc, k, relu)
    if screens(x):
        return screened.topk_encode(x, W_enc, b_enc, k, relu, shadow)
    if x.is_cuda and W_enc.dtype in gpu_encoder.DTYPES:
        if k <= gpu_encoder.MOST_SLOTS:
            return gpu_encoder.topk_encode(x, W_enc, b_enc, k, relu)
        x, W_enc, b_enc = x.to(W_enc.dtype).float(), W_enc.float(), b_enc.float()
    select = dispatch.lookup("topk_select", x.device)
    values, indices = x.new_empty(len(x), k), x.new_empty(len(x), k, dtype=torch.int32)
    for rows, h in _chunks(x, W_enc, b_enc):
        values[rows], indices[rows] = select(h, k, relu)
    return values, indices


def threshold_encode(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, theta: Tensor, shadow: screened.Factor | None = None
) -> SparseActivations:
    """What of x @ W_enc.T + b_enc is above theta (F), or NaN."""
    if screens(x):
        return screened.threshold_encode(x, W_enc, b_enc, theta, shadow)
    select = dispatch.lookup("threshold_select", x.device)
    parts = []
    for _, h in _chunks(x, W_enc, b_enc):
        indptr, indices, values = select(h, theta)
        parts.append(SparseActivations(indptr, indices, values, len(W_enc)))
    return SparseActivations.stacked(parts, len(W_enc), x)


def batch_topk_encode(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, shadow: screened.Factor | None = None
) -> SparseActivations:
    """The k n largest positive of x @ W_enc.T + b_enc; ties go to the lower (row, id)."""
    budget = k * len(x)
    if screens(x):
        return screened.batch_candidates(x, W_enc, b_enc, k, shadow).largest(budget)
    kept = SparseActivations.stacked([], len(W_enc), x)
    for _, h in _chunks(x, W_enc, b_enc):
        # What is beaten by k n earlier entries can never come back, so at most budget + one chunk is held.
        part = SparseActivations.from_dense(torch.where(h <= 0, 0, h))
        kept = SparseActivations.stacked([kept, part], len(W_enc), x).largest(budget)
    return kept


def screens(x: Tensor) -> bool:
    """Whether x goes the way of the certified screen."""
    return x.is_cpu and x.dtype == torch.float32 and dispatch.forced() != "reference"


def _chunks(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Pre-activations of a few rows at a time; on a CPU accumulated in float64."""
    n, F = len(x), len(W_enc)
    (fewest, most), scratch = (CPU_ROWS, CPU_SCRATCH) if x.is_cpu else (GPU_ROWS, GPU_SCRATCH)
    rows = max(1, min(n, most, max(fewest, scratch // F)))
    for start in range(0, n, rows):
        part = slice(start, min(start + rows, n))
        if x.is_cpu:
            h = torch.addmm(b_enc.double(), x[part].double(), W_enc.double().T).to(x.dtype)
        else:
            h = torch.addmm(b_enc, x[part], W_enc.T)
        yield part, h
