"""Memory for large results: on huge pages, and used again once nobody holds it."""

from __future__ import annotations

import math
import mmap
import sys
import threading

import torch
from torch import Tensor

from pullback import _C

from .borrow import view

# Bytes from which on it pays: some huge pages.
LARGE = 2**23


def on_huge_pages(fresh: Tensor) -> Tensor:
    """The tensor itself, whose memory nobody has touched yet, backed by huge pages where the system gives them.

    Touching new memory for the first time is what a large result costs most: the system clears it page by page, and
    huge pages are cleared four times as fast. Rows gathered from them also miss fewer address translations. Small
    tensors, and those on other devices, stay as they are.
    """
    if fresh.is_cpu and fresh.nbytes >= LARGE:
        _C.prefer_huge_pages(view(fresh))
    return fresh


class Pool:
    """Memory of large tensors that is handed out again when the last tensor that shares it is gone.

    A training loop drops its gradients before it makes the next: they then land where those lay, and the system need
    not clear the memory once more. What lies free is given back to the system as soon as it does not fit a request.
    """

    def __init__(self) -> None:
        self._buffers: list[mmap.mmap] = []
        self._lock = threading.Lock()

    def empty(self, like: Tensor, *shape: int) -> Tensor:
        """An uninitialised tensor of this shape on the CPU, in the dtype of `like`."""
        nbytes = math.prod(shape) * like.element_size()
        if nbytes < LARGE:
            return like.new_empty(shape)
        with self._lock:
            return torch.frombuffer(self._take(nbytes), dtype=like.dtype).view(shape)

    def release(self) -> None:
        """Give back to the system what lies free."""
        with self._lock:
            self._drop_free()

    @property
    def nbytes(self) -> int:
        """Bytes of all memory it knows, in use or free."""
        return sum(len(buffer) for buffer in self._buffers)

    def _take(self, nbytes: int) -> mmap.mmap:
        for place in range(len(self._buffers)):
            if len(self._buffers[place]) == nbytes and self._is_free(place):
                return self._buffers[place]
        self._drop_free()
        self._buffers.append(_anonymous(nbytes))
        _C.prefer_huge_pages(view(torch.frombuffer(self._buffers[-1], dtype=torch.uint8)))
        return self._buffers[-1]

    def _drop_free(self) -> None:
        self._buffers = [self._buffers[i] for i in range(len(self._buffers)) if not self._is_free(i)]

    def _is_free(self, place: int) -> bool:
        # The storage of a tensor would hold a reference, beside that of the list and that of the argument.
        return sys.getrefcount(self._buffers[place]) == 2


def _anonymous(nbytes: int) -> mmap.mmap:
    if sys.platform == "win32":
        return mmap.mmap(-1, nbytes)
    # Private: a child process gets a copy, as it does of memory from malloc.
    return mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


results = Pool()
