"""safetensors files as tensors on a read-only map of the file: nothing is read before it is touched, and what was read
is the page cache's to drop.

safetensors itself maps files privately and writable, which the kernel counts as memory of the process, and refuses for
a file larger than all there is.
"""

from __future__ import annotations

import json
import math
import mmap
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pullback._util.mapped import view_of

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "BOOL": torch.bool,
}


class Place(NamedTuple):
    """Where in a file a tensor lies, and how to tell whether it is still that file."""

    path: Path
    offset: int
    size: int
    modified: int


class _Map(NamedTuple):
    path: Path
    start: int
    size: int
    modified: int


# A view does not know its file, only its address.
_open_maps: weakref.WeakKeyDictionary[mmap.mmap, _Map] = weakref.WeakKeyDictionary()


def map_safetensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, none of which may be written to.

    Raises: FileNotFoundError if it is not there, ValueError if it is not whole or holds what is no tensor of ours.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; copy or save the set again")
    try:
        buffer = _map(file)
        start = 8 + int.from_bytes(buffer[:8], "little")
        header = json.loads(buffer[8:start])
        return {name: _tensor(buffer, start, entry) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(
            f"{file} ({file.stat().st_size} bytes) is damaged or cut off: {error}; copy or save the set again"
        ) from error


def place_of(tensor: Tensor) -> Place | None:
    """Where a view of a map lies; None for tensors in memory."""
    address = tensor.data_ptr()
    for found in _open_maps.values():
        if found.start <= address < found.start + found.size:
            return Place(found.path, address - found.start, found.size, found.modified)
    return None


def read_here_and_there(tensor: Tensor) -> None:
    """Tell the kernel not to read ahead in a view of a map, of which single rows will be asked for."""
    place = place_of(tensor)
    if place is None or not hasattr(mmap, "MADV_RANDOM"):
        return
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    first = place.offset // mmap.PAGESIZE * mmap.PAGESIZE
    length = place.offset + reach * tensor.dtype.itemsize - first
    for buffer, found in _open_maps.items():
        if found.start + place.offset == tensor.data_ptr():
            buffer.madvise(mmap.MADV_RANDOM, first, length)


def reopen(place: Place, dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    """The view that lay there, on a new map. Raises FileNotFoundError or ValueError if the file is not what it was."""
    if not place.path.is_file():
        raise FileNotFoundError(f"{place.path} is missing; weights loaded with lazy= stay in it, so it has to stay too")
    stat = place.path.stat()
    if (stat.st_size, stat.st_mtime_ns) != (place.size, place.modified):
        raise ValueError(f"{place.path} has changed since its weights were loaded with lazy=; load them again")
    reach = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    return view_of(_map(place.path), dtype, reach, place.offset).as_strided(shape, strides)


def _map(file: Path) -> mmap.mmap:
    with open(file, "rb") as handle:
        buffer = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    stat = file.stat()
    start = view_of(buffer, torch.uint8, 1, 0).data_ptr()
    _open_maps[buffer] = _Map(file.absolute(), start, stat.st_size, stat.st_mtime_ns)
    return buffer


def _tensor(buffer: mmap.mmap, start: int, entry: dict[str, Any]) -> Tensor:
    dtype, shape = entry["dtype"], [int(size) for size in entry["shape"]]
    first, last = entry["data_offsets"]
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype} is not known here")
    count = math.prod(shape)
    if not 0 <= first <= last <= len(buffer) - start or last - first != count * DTYPES[dtype].itemsize:
        raise ValueError(f"a tensor {dtype} {shape} cannot lie at bytes {first} to {last} of {len(buffer) - start}")
    if count == 0:
        return torch.empty(shape, dtype=DTYPES[dtype])
    return view_of(buffer, DTYPES[dtype], count, start + first).view(shape)
