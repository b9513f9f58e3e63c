"""Large results on huge pages."""

from __future__ import annotations

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
