"""One process for each device."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn

from pullback.attribution.many.run import attribute_many
from pullback.lens.tokens import Prompt

OpenPair = Callable[[str], tuple[Any, Any]]
"""A device -> the model and its transcoders on it; of a module's top level, so that another process can call it."""


def attribute_on_devices(
    open_pair: OpenPair,
    prompts: Sequence[Prompt],
    out_dir: str | os.PathLike[str],
    devices: Sequence[str] | None = None,
    **settings: Any,
) -> None:
    """`attribute_many` with one process, and one shard, for each device (None: every CUDA device).

    Raises ValueError where there is no device; what stops one process stops all.
    """
    names = list(devices) if devices is not None else [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if not names:
        raise ValueError("attribute_on_devices: there is no CUDA device; name devices, or call attribute_many")
    arguments = (names, open_pair, list(prompts), os.fspath(out_dir), settings)
    spawn(_work, arguments, nprocs=len(names))


def _work(
    rank: int, devices: list[str], open_pair: OpenPair, prompts: list[Prompt], out_dir: str, settings: dict[str, Any]
) -> None:
    if devices[rank].startswith("cuda"):
        torch.cuda.set_device(devices[rank])
    model, sets = open_pair(devices[rank])
    shared = {**settings, "verbose": settings.get("verbose", True) and rank == 0}
    attribute_many(model, sets, prompts, out_dir, num_shards=len(devices), shard_id=rank, **shared)
