"""Checkpoints of a run on several processes, each of which writes what it holds.

    tokens_000000012800/
        state.json            as in a checkpoint of one process
        shards/               of `torch.distributed.checkpoint`: weights, moments, and the mixing buffer

The tensors have the names and shapes that they have in one process, whatever was divided, so that a run goes on with
another number of processes, or another way to divide the work. As everywhere, a checkpoint appears under its name when
it is complete and on disk.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from pullback.training.checkpoint import SHARDS, Checkpoints
from pullback.training.distributed.layout import Layout
from pullback.training.distributed.run import SharedRun, is_by_feature
from pullback.training.distributed.shares import FeatureShare
from pullback.training.run import Run
from pullback.training.state import SEPARATOR, flattened, nested

ROWS = "source/mixing/rows/"


class SharedCheckpoints(Checkpoints):
    """As `Checkpoints`, called by all processes at the same time, on a file system that all of them see."""

    def __init__(self, path: str | os.PathLike[str], layout: Layout, *, keep: int, resume: bool) -> None:
        self.world = layout.world
        self.path = Path(path)
        self.keep = keep
        with self.world.together():
            if self.world.rank == 0:
                super().__init__(path, keep=keep, resume=resume)

    def latest(self) -> Path | None:
        with self.world.together():
            newest = super().latest() if self.world.rank == 0 else None
        return self.world.objects(newest)[0]

    def save(self, n_tokens: int, runs: Sequence[Run], source: Any) -> Path:
        target, first = self.target(n_tokens), self.world.rank == 0
        with ExitStack() as stack:
            staging = None
            with self.world.together():
                if first:
                    staging = stack.enter_context(self.staged(target))
            staging = self.world.objects(staging)[0]
            tensors, numbers = _everything(runs)
            buffered, position = flattened(source.state_dict())
            tensors |= {f"source{SEPARATOR}{name}": tensor for name, tensor in buffered.items()}
            try:
                writer = FileSystemWriter(staging / SHARDS)
                save(tensors, storage_writer=writer, process_group=self.world.control)
            except CheckpointException as error:  # of all processes, in all of them
                said = "; ".join(f"process {rank}: {failure[0]}" for rank, failure in error.failures.items())
                raise OSError(f"could not write {target.name}: {said}; the checkpoints before it are intact") from error
            every = self.world.objects(numbers)
            with self.world.together():
                if first:
                    merged = [{k: v for part in parts for k, v in part.items()} for parts in zip(*every, strict=True)]
                    self.describe(staging, n_tokens, runs, merged, position)
                    stack.close()
                    self.publish(target)
        return target


def read_shards(directory: Path, runs: Sequence[Run], source: Any, state: dict[str, Any]) -> None:
    """Put the tensors of a checkpoint, and the numbers of its `state`, into fresh runs and a fresh source.

    Raises:
        ValueError: it is damaged, or of other layers or sizes.
    """
    world = runs[0].world if isinstance(runs[0], SharedRun) else None
    place = directory / SHARDS
    tensors, _ = _everything(runs)
    try:
        known = FileSystemReader(place).read_metadata().state_dict_metadata
        tensors |= {name: _room(known[name]) for name in known if name.startswith("source") and _wanted(name, runs[0])}
        group = None if world is None else world.control
        load(tensors, checkpoint_id=place, process_group=group, no_dist=group is None)
    except (CheckpointException, OSError, RuntimeError, KeyError) as error:
        raise ValueError(
            f"{directory} is damaged, or of a run with other layers or sizes: {error}; remove it to go on from the "
            "checkpoint before it"
        ) from error
    for i, (run, numbers) in enumerate(zip(runs, state["steps"], strict=True)):
        own = {}
        for part in map(str, run.layers):
            front = f"run_{i}{SEPARATOR}{part}{SEPARATOR}"
            found = {name[len(front) :]: _local(t) for name, t in tensors.items() if name.startswith(front)}
            own[part] = nested(found, numbers[part])
        run.load_whole_state(own)
    front = f"source{SEPARATOR}"
    buffered = {
        name[len(front) :]: tensor if name.endswith("generator") else tensor.to(runs[0].device)
        for name, tensor in tensors.items()
        if name.startswith(front)
    }
    source.load_state_dict(nested(buffered, state["source"]))


def _everything(runs: Sequence[Run]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The live tensors of this process's part of all runs by name, and the numbers of each run by layer."""
    tensors: dict[str, Tensor] = {}
    numbers = []
    for i, run in enumerate(runs):
        numbers.append({})
        for part, state in run.whole_state().items():
            found, numbers[-1][part] = flattened(state)
            for name, tensor in found.items():
                tensors[f"run_{i}{SEPARATOR}{part}{SEPARATOR}{name}"] = _placed(name, tensor, run)
    return tensors, numbers


def _placed(name: str, tensor: Tensor, run: Run) -> Tensor:
    """A tensor of which others hold more rows, with its place among them."""
    share = run.layout.share if isinstance(run, SharedRun) else None
    if not isinstance(share, FeatureShare) or not is_by_feature(name):
        return tensor
    mesh = DeviceMesh(tensor.device.type, share.peers.ranks, _init_backend=False)  # of places: nothing is sent by it
    shape = torch.Size([run.config.d_sae, *tensor.shape[1:]])
    strides = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(tensor, mesh, [Shard(0)], run_check=False, shape=shape, stride=strides)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _wanted(name: str, run: Run) -> bool:
    """Rows of other processes' layers stay on disk."""
    if not name.startswith(ROWS) or not isinstance(run, SharedRun):
        return True
    layers = sorted(run.layout.owners)
    return layers[int(name[len(ROWS) :]) // 2] in run.layers


def _room(metadata: Any) -> Tensor:
    return torch.empty(metadata.size, dtype=metadata.properties.dtype)
