"""How a tensor is lent to the compiled CPU kernels."""

from __future__ import annotations

from torch import Tensor

View = tuple[int, int, tuple[int, ...], tuple[int, ...]]


def view(t: Tensor) -> View:
    """(address, bytes an element, shape, strides): all that the kernels know of a tensor. It only borrows: the caller
    keeps the tensor alive."""
    return t.data_ptr(), t.element_size(), tuple(t.shape), t.stride()


def optional(t: Tensor | None) -> tuple[int, int, tuple[int, ...], tuple[int, ...]] | None:
    """The view of a tensor that need not be there."""
    return None if t is None else view(t)
