"""Several processes that train together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from pullback.training.config import TrainConfig
from pullback.training.distributed.checkpoint import SharedCheckpoints
from pullback.training.distributed.harvest import SharedHarvest, SharedHarvester
from pullback.training.distributed.layout import Layout
from pullback.training.distributed.run import SharedRun
from pullback.training.distributed.world import World
from pullback.training.run import Widths
from pullback.training.source import Batch
from pullback.training.team import Team
from pullback.transcoders import ModelReading


class SharedTeam(Team):
    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.reports = layout.world.rank == 0

    def run(
        self, config: TrainConfig, widths: Widths, device: torch.device, readings: Mapping[int, ModelReading | None]
    ) -> SharedRun:
        return SharedRun(config, self.layout, widths, device, readings)

    def harvest(
        self, harvester: Sequence[Any], batches: Callable[[], Iterable[Batch]], **settings: Any
    ) -> SharedHarvest:
        return SharedHarvest(SharedHarvester(self.layout, *harvester), batches, **settings)

    def checkpoints(self, path: str | os.PathLike[str], *, keep: int, resume: bool) -> SharedCheckpoints:
        return SharedCheckpoints(path, self.layout, keep=keep, resume=resume)


@contextmanager
def meeting(
    configs: Sequence[TrainConfig], layers: Sequence[int], device: torch.device, **agreed: Any
) -> Iterator[SharedTeam]:
    """See `training.team.meeting`."""
    with World(device) as world:
        own = {"layers": list(layers), **agreed}
        for i, config in enumerate(configs):
            front = "" if len(configs) == 1 else f"configs[{i}]."
            own |= {front + name: v for name, v in config.to_dict().items() if name not in ("device", "prefetch")}
        every = world.objects(own)
        differing = [name for name in own if any(one.get(name, None) != own[name] for one in every)]
        if any(one != own for one in every):
            said = "; ".join(f"{name}: {', '.join(repr(one.get(name)) for one in every)}" for name in differing)
            raise ValueError(
                f"the processes were told different things ({said}); tell them the same, or give "
                'parallel="none" to let each train for itself'
            )
        parallel = configs[0].parallel
        if parallel is None and any(config.cross_layer for config in configs):
            parallel = "features"  # of all layers, which are one dictionary
        yield SharedTeam(Layout(world, parallel, layers))
