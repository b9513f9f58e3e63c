"""Tensors on memory that is a map of a file."""

from __future__ import annotations

import mmap
import warnings

import torch
from torch import Tensor


def view_of(buffer: mmap.mmap, dtype: torch.dtype, count: int, offset: int = 0) -> Tensor:
    """`count` numbers from byte `offset` on, where they lie; the tensor keeps the map open. Of a read-only map they may
    not be written to."""
    with warnings.catch_warnings():
        # torch has no read-only tensors, and warns that it will not be kept from writing.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(buffer, dtype=dtype, count=count, offset=offset)
