"""The encoder of a top-k dictionary: GEMM and select in row chunks, so that the N x F matrix never exists."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from . import _cpu, _gpu_encoder, dispatch

# Pre-activations held at a time: the product of a row chunk and F stays at or below it.
CPU_SCRATCH = 2**25
GPU_SCRATCH = 2**26

# Turns a chunk of pre-activations, and the inputs they came from, into (values, indices).
_Select = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class _Kept(threading.local):
    """The scratch a thread keeps between calls, by dtype."""

    def __init__(self) -> None:
        self.buffers: dict[torch.dtype, Tensor] = {}


_kept = _Kept()


def topk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, relu: bool) -> tuple[Tensor, Tensor]:
    """Top-k of x @ W_enc.T + b_enc, through one reused buffer: faster than with the whole matrix.

    The answer is that of float64 accumulation, rounded once: see `_cpu.topk_certified` and `_gpu_encoder`. For float64,
    and for many slots on a GPU, it is the top-k of what the GEMM gave.
    """
    if x.is_cuda and W_enc.dtype in _gpu_encoder.DTYPES:
        if k <= _gpu_encoder.MOST_SLOTS:
            return _gpu_encoder.topk_encode(x, W_enc, b_enc, k, relu)
        x, W_enc, b_enc = x.to(W_enc.dtype).float(), W_enc.float(), b_enc.float()
    n, F = x.shape[0], W_enc.shape[0]
    # On a CPU, 512 rows measured best: fewer starve the GEMM, more leave the cache.
    scratch, fewest, most = (CPU_SCRATCH, 64, 512) if x.is_cpu else (GPU_SCRATCH, 256, 8192)
    chunk = max(1, min(n, most, max(fewest, scratch // F)))
    select = _selector(x, W_enc, b_enc, k, relu)
    h = _scratch(chunk * F, x).view(chunk, F)
    values, indices = x.new_empty(n, k), x.new_empty(n, k, dtype=torch.int32)
    for start in range(0, n, chunk):
        rows = x[start : start + chunk]
        torch.addmm(b_enc, rows, W_enc.T, out=h[: len(rows)])
        values[start : start + chunk], indices[start : start + chunk] = select(h[: len(rows)], rows)
    return values, indices


def _selector(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, relu: bool) -> _Select:
    if x.is_cpu and x.dtype == torch.float32:
        W_norms = _cpu.row_norms(W_enc)
        return lambda h, rows: _cpu.topk_certified(h, rows, W_enc, b_enc, W_norms, k, relu)
    select = dispatch.lookup("topk_select", x.device)
    return lambda h, _: select(h, k, relu)


def _scratch(size: int, like: Tensor) -> Tensor:
    """A flat buffer of `size` elements. On a CPU it is kept: fresh pages cost a tenth of the GEMM that fills them."""
    if not like.is_cpu:
        return like.new_empty(size)
    if like.dtype not in _kept.buffers or _kept.buffers[like.dtype].numel() < size:
        with torch.inference_mode(False):  # a tensor made under inference mode could not be written outside it
            _kept.buffers[like.dtype] = torch.empty(size, dtype=like.dtype)
    return _kept.buffers[like.dtype][:size]
