"""Tokens in a file, mapped into memory: prompts are read when they are used."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

TOKEN_FILES = (".npy", ".bin")


class TokenFile:
    """Token ids (n, T), or one long row (n) that is cut into contexts, in a `.npy` file or in a raw one.

    Args:
        path: a `.npy` file, or one of bare numbers.
        dtype: of bare numbers, "uint16" for instance. Dtype and shape may also stand in a file beside it, `path` with
            `.json` behind it: {"dtype": "uint16", "shape": [1000, 128]}.
        shape: of bare numbers; None for one long row.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: numbers that are no token ids, a file that dtype and shape do not fit, or no dtype.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, dtype: str | None = None, shape: Sequence[int] | None = None
    ) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no file {self.path}")
        if self.path.suffix == ".npy":
            if dtype is not None or shape is not None:
                raise ValueError(f"{self.path} says its own dtype and shape; leave them out")
            self.array = _mapped(self.path)
        else:
            self.array = _bare(self.path, dtype, shape)
        self._check()

    @classmethod
    def of_array(cls, array: np.ndarray) -> TokenFile:
        """The same for an array that is there already."""
        self = cls.__new__(cls)
        self.path, self.array = Path("the array"), array
        self._check()
        return self

    def prompts(self, context_size: int | None) -> ArrayPrompts:
        """Its rows; of one long row, contexts of `context_size`, without what is left at the end.

        Raises:
            ValueError: one long row without a context size, or shorter than one.
        """
        if self.array.ndim == 2:
            return ArrayPrompts(self.array[:, :context_size])
        if context_size is None:
            raise ValueError(f"{self.path} is one row of {len(self.array):,} tokens: give context_size to cut it into")
        n = len(self.array) // context_size
        if n == 0:
            raise ValueError(f"{self.path} has {len(self.array)} tokens, fewer than context_size={context_size}")
        return ArrayPrompts(self.array[: n * context_size].reshape(n, context_size))

    def _check(self) -> None:
        array = self.array
        if array.dtype.kind not in "iu" or array.ndim not in (1, 2) or array.size == 0:
            raise ValueError(
                f"{self.path} must hold integers [n_prompts, T] or [n], at least one, got {array.dtype} "
                f"{list(array.shape)}"
            )


class ArrayPrompts:
    """Prompts in the rows of an array Int[ndarray, 'n T']."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def take(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The prompts at the places `chosen` Int[Tensor, 'B'], and a mask that is true everywhere."""
        ids = torch.from_numpy(self.array[chosen.numpy()].astype(np.int64))
        return ids, torch.ones_like(ids, dtype=torch.bool)


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path} is no .npy file of numbers: {error}") from error


def _bare(path: Path, dtype: str | None, shape: Sequence[int] | None) -> np.ndarray:
    beside = path.with_name(path.name + ".json")
    if dtype is None and beside.is_file():
        said = _sidecar(beside)
        dtype, shape = said["dtype"], shape if shape is not None else said.get("shape")
    if dtype is None:
        raise ValueError(
            f'{path} is a file of bare numbers: give dtype="uint16" or another, or write {{"dtype": "uint16"}} into '
            f"{beside}"
        )
    try:
        kind = np.dtype(dtype)
    except TypeError as error:
        raise ValueError(f"{path}: unknown dtype {dtype!r}; write uint16, int32, ...") from error
    size = path.stat().st_size
    wanted = size // kind.itemsize if shape is None else int(np.prod(shape))
    if wanted * kind.itemsize != size:
        raise ValueError(
            f"{path} has {size:,} bytes, and {kind} {'numbers' if shape is None else list(shape)} would take "
            f"{wanted * kind.itemsize:,}; correct dtype or shape"
        )
    return (
        np.memmap(path, dtype=kind, mode="r", shape=wanted if shape is None else tuple(shape))
        if size
        else np.empty(0, kind)
    )


def _sidecar(file: Path) -> dict[str, Any]:
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        return {"dtype": said["dtype"], "shape": said.get("shape")}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{file} must read like {{"dtype": "uint16", "shape": [1000, 128]}}: {error!r}') from error
