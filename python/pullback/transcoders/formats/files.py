"""Files that hold weights and settings, and nothing that runs: safetensors, JSON, npz, and pickles without code."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Raises ValueError if the file is not whole, FileNotFoundError if it is not there."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; copy or save the set again")
    try:
        with safe_open(file, framework="pt", device="cpu") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  (no dict: it has no iterator)
    except (SafetensorError, OSError) as error:
        size = file.stat().st_size
        raise ValueError(f"{file} ({size} bytes) is damaged or cut off: {error}; copy or save the set again") from error


def write_safetensors(tensors: Mapping[str, Tensor], file: Path, like: Path) -> None:
    """Write a file that whoever may read `like` may read: safetensors itself lets only the owner.

    Raises: OSError, also for what safetensors reports of a full disk.
    """
    own: dict[str, Tensor] = {}
    for name, tensor in tensors.items():  # tied weights are stored twice; safetensors refuses shared memory
        shared = any(tensor.untyped_storage().data_ptr() == t.untyped_storage().data_ptr() for t in own.values())
        own[name] = tensor.clone() if shared else tensor
    try:
        save_file(own, file)
    except SafetensorError as error:
        raise OSError(f"could not write {file.name}: {error}; what was there is intact") from error
    shutil.copymode(like, file)


def read_json(file: Path) -> dict[str, Any]:
    """Raises ValueError unless the file holds a JSON object, FileNotFoundError if it is not there."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; it says how the weights beside it are to be read")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not readable JSON ({error}); the file is damaged, copy it again") from error
    if not isinstance(data, dict):
        raise ValueError(f"{file} must hold keys and values, got {type(data).__name__}; the file is damaged")
    return data


def read_npz(file: Path) -> dict[str, Tensor]:
    """Raises ValueError if the file is damaged or holds more than arrays of numbers, FileNotFoundError if it is not
    there."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; copy it again")
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: torch.from_numpy(archive[name]) for name in archive.files}
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{file} is damaged, or holds something besides arrays of numbers, which is refused because loading it "
            f"could run code: {error}"
        ) from error


def read_pickle(file: Path, allowed: list[Any]) -> Any:
    """`torch.load(weights_only=True)`: tensors and plain values, and instances of the `allowed` classes. No code of the
    file runs.

    Raises: ValueError if the file is damaged or asks for anything else.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; copy it again")
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(file, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # torch raises whatever the damage leads to: UnpicklingError, EOFError, RuntimeError, ...
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{file} is damaged, or holds something besides weights and settings, which is refused because loading it "
            f"could run code: {first}"
        ) from error


def folders_with(weights: str, path: Path, tool: str) -> list[Path]:
    """Folders that hold a file named `weights`: the one given (or that of a file given), else all below it.

    Raises: FileNotFoundError if there is none.
    """
    if path.is_file() and path.name == weights:
        return [path.parent]
    folders = [path] if (path / weights).is_file() else sorted(file.parent for file in path.rglob(weights))
    if not folders:
        raise FileNotFoundError(f"no {weights} in {path}; {tool} keeps it and its settings in one folder a dictionary")
    return folders
