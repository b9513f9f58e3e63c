"""The files of an activation cache, and how numbers are stored in them.

    manifest.json              what was read of which model, and the shards that are complete
    shard_00000.safetensors    layers.{l}.x (n, d_in), layers.{l}.y (n, d_out), token_ids (n)
                               int8: also layers.{l}.x.scale (n), layers.{l}.y.scale (n)

A row of int8 numbers q stands for q * scale, where scale is the row's largest magnitude / 127.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pullback._util.atomic import atomic_save

FORMAT = 1
MANIFEST = "manifest.json"
TOKEN_IDS = "token_ids"
SCALE = ".scale"
STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}


def site(layer: int, which: str) -> str:
    """Name of a tensor in a shard; `which` is "x" or "y"."""
    return f"layers.{layer}.{which}"


def shard_name(number: int) -> str:
    return f"shard_{number:05d}.safetensors"


def bytes_per_token(layers: int, d_in: int, d_out: int, dtype: str) -> int:
    scales = 8 if dtype == "int8" else 0
    return layers * ((d_in + d_out) * STORED[dtype].itemsize + scales) + 4


def stored(name: str, rows: Tensor, dtype: str) -> dict[str, Tensor]:
    """Rows Float[Tensor, 'n d'] as a shard keeps them.

    Raises:
        ValueError: NaN or infinite activations, or such as are beyond the range of `dtype`.
    """
    if dtype == "int8":
        scale = rows.abs().amax(dim=1).float() / 127
        kept = (rows.float() / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round().to(torch.int8)
        tensors = {name: kept, name + SCALE: scale}
        finite = scale
    else:
        finite = rows.to(STORED[dtype])
        tensors = {name: finite}
    if not bool(finite.isfinite().all()):
        if bool(rows.isfinite().all()):
            raise ValueError(f"{name}: activations reach {float(rows.abs().max()):.3g}, beyond {dtype}; use bfloat16")
        raise ValueError(f"{name}: NaN or infinite activations; look for the prompt that makes the model overflow")
    return {key: tensor.cpu() for key, tensor in tensors.items()}


def restored(shard: Mapping[str, Tensor], name: str, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows Int64[Tensor, 'n'] of a tensor of a shard, as numbers of `dtype`."""
    kept = shard[name].index_select(0, rows).to(dtype)
    return kept * shard[name + SCALE].index_select(0, rows).to(dtype)[:, None] if name + SCALE in shard else kept


def sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_manifest(directory: Path) -> dict[str, Any]:
    """Raises FileNotFoundError without one, ValueError where it is damaged or of another version."""
    file = directory / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(f"no {MANIFEST} in {directory}: make a cache there with cache_activations")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        found = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged: {error}; make the cache again") from error
    if found != FORMAT:
        raise ValueError(
            f"{file} has format {found!r}, and this version of pullback reads {FORMAT}; make the cache again, or use "
            f"version {manifest.get('pullback_version')}"
        )
    return manifest


def write_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    atomic_save(directory / MANIFEST, json.dumps(manifest, indent=1))


def has_size(directory: Path, shard: Mapping[str, Any]) -> bool:
    """Whether a shard's file is there in full length."""
    try:
        return os.path.getsize(directory / shard["file"]) == shard["bytes"]
    except OSError:
        return False
