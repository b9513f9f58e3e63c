"""What running out of memory looks like, and what becomes of memory that is freed."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

import torch


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on whatever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        said in str(error).lower() for said in ("out of memory", "can't allocate memory", "not enough memory")
    )


@cache  # once is enough, for the whole process
def keep_freed_memory() -> None:
    """Let the C library keep up to 64 MiB of freed memory for what is allocated next.

    glibc gives the pages of a large block back when it is freed, and the system clears and maps new ones for the next
    block of the size: in loops over tensors of a few MiB that costs up to half of the time. It gives back less once a
    large block that it mapped has been freed (mallopt(3), M_MMAP_THRESHOLD), of which 32 MiB is the largest that
    counts; its pages are never touched. Other C libraries make nothing of it.
    """
    with suppress(RuntimeError):  # where there is a limit to what may be mapped, all stays as it is
        torch.empty((32 << 20) - (16 << 10), dtype=torch.uint8)


@contextmanager
def old_objects_settled() -> Iterator[None]:
    """Inside, the collector of reference cycles goes through what was made inside only, and not through a model and all
    libraries again and again: of a loop that makes many small objects that is a few percent of the time."""
    if gc.get_freeze_count():  # somebody else has them settled, and is to let them go
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
