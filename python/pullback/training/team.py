"""One process, or several that were launched together: what a run is made of in either case."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from pullback.training.checkpoint import Checkpoints
from pullback.training.config import TrainConfig
from pullback.training.harvest import Harvest, Harvester
from pullback.training.run import Run, Widths
from pullback.training.runs import new_run
from pullback.training.source import Batch
from pullback.transcoders import ModelReading


class Team:
    """A process that trains for itself; `distributed.SharedTeam` is one of several that train together.

    Attributes:
        reports: whether it is this process that says how the run goes.
    """

    reports = True

    def run(
        self, config: TrainConfig, widths: Widths, device: torch.device, readings: Mapping[int, ModelReading | None]
    ) -> Run:
        """See `new_run`."""
        return new_run(config, widths, device, readings)

    def harvest(self, harvester: Sequence[Any], batches: Callable[[], Iterable[Batch]], **settings: Any) -> Harvest:
        """A source of activations. Args: those of a `Harvester`, and what else a `Harvest` takes."""
        return Harvest(Harvester(*harvester), batches, **settings)

    def checkpoints(self, path: str | os.PathLike[str], *, keep: int, resume: bool) -> Checkpoints:
        return Checkpoints(path, keep=keep, resume=resume)


def is_launched() -> bool:
    """Whether `torch.distributed` is in use, or `torchrun` has started several processes that may use it."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size() > 1
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ and "MASTER_ADDR" in os.environ


def speaks() -> bool:
    """Whether this process is the one, of those launched together, that says something."""
    if not is_launched():
        return True
    return (dist.get_rank() if dist.is_initialized() else int(os.environ["RANK"])) == 0


@contextmanager
def meeting(
    configs: Sequence[TrainConfig], layers: Sequence[int], device: torch.device, **agreed: Any
) -> Iterator[Team]:
    """The time of a run, in which processes that were launched together train together, unless they are not to.

    Raises:
        ValueError: they were called with different settings, or with `agreed` that differ.
    """
    if configs[0].parallel == "none" or not is_launched():
        yield Team()
        return
    from pullback.training import distributed

    with distributed.meeting(configs, layers, device, **agreed) as team:
        yield team
