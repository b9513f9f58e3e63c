"""What running out of memory looks like."""

from __future__ import annotations

import torch


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on whatever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        said in str(error).lower() for said in ("out of memory", "can't allocate memory", "not enough memory")
    )
