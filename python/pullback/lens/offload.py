"""Tensors and models out of the way: in temporary files, or on another device, while they are hardly needed.

What is in a file is read where it is touched, layer after layer, and is the page cache's to drop. The folder of
temporary files (TMPDIR) should be on a disk: some systems keep /tmp in memory.
"""

from __future__ import annotations

import dataclasses
import mmap
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from pullback._util.mapped import view_of

PLACES = (None, "cpu", "disk")
SMALLEST = 1 << 16
"""Bytes of a tensor that is worth a file."""

T = TypeVar("T")


def on_disk(value: T) -> T:
    """A tensor, or a structure of them (dataclasses, lists, tuples, dicts), with all large ones in temporary files:
    read-only, gone with the last reference. Tensors on other devices or in files already stay, and so does all else."""
    if isinstance(value, Tensor):
        return _filed(value) if value.device.type == "cpu" and value.nbytes >= SMALLEST else value  # type: ignore[return-value]
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(on_disk(part) for part in value)  # type: ignore[call-arg]
    if isinstance(value, dict):
        return {key: on_disk(part) for key, part in value.items()}  # type: ignore[return-value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        return dataclasses.replace(value, **{name: on_disk(getattr(value, name)) for name in fields})
    return value


@contextmanager
def offloaded(model: torch.nn.Module, where: str | None) -> Iterator[None]:
    """Inside, the parameters and buffers of a model lie on the CPU ("cpu") or in temporary files ("disk"); afterwards
    they are back. None leaves them. Inside, the model is not to be trained, nor run unless it was on the CPU before.

    Raises ValueError for another place, and for "cpu" where that is where the model is.
    """
    if where not in PLACES:
        raise ValueError(f"offload must be None, 'cpu' or 'disk', got {where!r}")
    if where is None:
        yield
        return
    # What a device map keeps away already is on no device.
    found = {id(t): t for t in [*model.parameters(), *model.buffers()] if not t.is_meta}
    tensors = list(found.values())
    if where == "cpu" and all(t.device.type == "cpu" for t in tensors):
        raise ValueError("offload='cpu': this model is on the CPU already; 'disk' moves it to temporary files")
    homes = [(t, t.device, t.data_ptr()) for t in tensors]
    try:
        _replace([(t, torch.device("cpu")) for t in tensors], lambda t: on_disk(t) if where == "disk" else t)
        yield
    finally:
        _replace([(t, home) for t, home, address in homes if t.data_ptr() != address], torch.clone)


def _replace(homes: list[tuple[Tensor, torch.device]], new: Callable[[Tensor], Tensor]) -> None:
    """What each tensor holds becomes `new` of it, at its new home. Tied tensors stay tied."""
    keys = [(t.data_ptr(), t.shape, t.stride(), t.dtype, t.device) for t, _ in homes]
    done: dict[tuple, Tensor] = {}
    for key, (tensor, home) in zip(keys, homes, strict=True):
        if key not in done:
            done[key] = new(tensor.data.to(home))
        tensor.data = done[key]


def _filed(tensor: Tensor) -> Tensor:
    if tensor.is_meta or _in_a_file(tensor):
        return tensor
    with tempfile.TemporaryFile() as file:
        tensor.detach().contiguous().view(torch.uint8).numpy().tofile(file)
        file.flush()
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return view_of(buffer, tensor.dtype, tensor.numel()).view(tensor.shape)


def _in_a_file(tensor: Tensor) -> bool:
    """Whether the memory is a map of a file, as that of a model that was opened on a CPU in the dtype of its files."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return False
    address = tensor.data_ptr()
    for line in maps.read_text().splitlines():
        span, _mode, _offset, _device, inode, *_path = line.split()
        first, last = (int(end, 16) for end in span.split("-"))
        if first <= address < last:
            return inode != "0"
    return False
