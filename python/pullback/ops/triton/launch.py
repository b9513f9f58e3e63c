"""What every launch of a Triton kernel has to know."""

from __future__ import annotations

import importlib
from typing import Any

import torch
import triton
from torch import Tensor

# The build puts kernels/triton there, which a type checker of the sources cannot know; nor that a launch takes plain
# numbers where a kernel declares `tl.constexpr`.
kernels: Any = importlib.import_module("pullback.kernels.triton")

# TRITON_INTERPRET=1 at import time makes the kernels plain Python, which runs on CPU tensors (and only serves tests).
INTERPRETED = not isinstance(kernels.decode_csr_kernel, triton.JITFunction)

MAX_PROGRAMS = 2**31 - 1  # CUDA's limit on the first grid dimension
MAX_TILES = 2**16 - 1  # and on the second


def available() -> bool:
    """Whether the kernels can run here: on a CUDA device, or interpreted."""
    return INTERPRETED or torch.cuda.is_available()


def check_placed(op: str, *tensors: Tensor) -> None:
    """Raises ValueError unless all tensors are where the kernels can reach them, with contiguous last dimensions."""
    devices = {t.device for t in tensors}
    if len(devices) != 1:
        raise ValueError(f"{op} (triton): all tensors must be on one device, got {sorted(map(str, devices))}")
    if not (tensors[0].is_cuda or INTERPRETED):
        raise ValueError(f"{op} (triton): tensors must be on a CUDA device, got {tensors[0].device}")
    for t in tensors:
        if t.ndim and t.shape[-1] > 1 and t.stride(-1) != 1:
            raise ValueError(
                f"{op} (triton): the last dimension must be contiguous, got {list(t.shape)} with strides {t.stride()}; "
                "call .contiguous()"
            )


def blocks(size: int, block: int) -> int:
    """How many blocks cover `size`."""
    return -(-size // block)


def check_programs(op: str, programs: int) -> None:
    """Raises ValueError for more programs than one launch takes."""
    if programs > MAX_PROGRAMS:
        raise ValueError(f"{op} (triton): {programs} programs are too many for one launch; do it in pieces")


def dot_operand(t: Tensor) -> Tensor:
    """`t` as an operand of `tl.dot`. The interpreter multiplies the bit patterns of bfloat16: it gets float32."""
    return t.float() if INTERPRETED and t.dtype == torch.bfloat16 else t
