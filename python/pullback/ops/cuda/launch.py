"""How the CUDA backend lends tensors to the compiled module, and where the work is queued."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pullback import _cuda

View = tuple[int, str, tuple[int, ...], tuple[int, ...]]


def view(t: Tensor) -> View:
    """(address, dtype, shape, strides): all that the kernels know of a tensor. It only borrows; memory freed before
    the kernel runs is reused on the same stream only, after it."""
    return t.data_ptr(), str(t.dtype).removeprefix("torch."), tuple(t.shape), t.stride()


def optional_view(t: Tensor | None) -> View | None:
    return None if t is None else view(t)


@contextmanager
def queue(op: str, *tensors: Tensor | None) -> Iterator[tuple[int, int]]:
    """(device, stream): the device that all tensors are on, made current, and its current stream.

    Raises:
        ValueError: tensors on several devices, or not on a CUDA device.
    """
    devices = {t.device for t in tensors if t is not None}
    if len(devices) != 1:
        raise ValueError(f"{op} (cuda): all tensors must be on one device, got {sorted(map(str, devices))}")
    (device,) = devices
    if device.type != _cuda.device_type:
        raise ValueError(f"{op} (cuda): tensors must be on a CUDA device, got {device}")
    if device.type == "cpu":  # a module that runs its kernels on the host
        yield 0, 0
        return
    with torch.cuda.device(device):
        yield torch.cuda.current_device(), torch.cuda.current_stream().cuda_stream
