"""Activations from the model in every process: each runs its own batches of prompts, and gets the rows it trains on.

All processes read the same prompts in the same order, which costs little beside the model, and the i-th batch is run by
process i modulo their number. Rows go on in the order of the batches, so what is mixed, trained on and remembered of
the source is that of one process. Whatever the tokens, all processes run out of them in the same round.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from pullback.training.distributed.layout import Layout
from pullback.training.harvest import Counted, Harvest, Harvested, Harvester, Position
from pullback.training.source import Batch


class Round(NamedTuple):
    """A batch of prompts for every process; the last round may have fewer."""

    counted: list[Counted]
    rows: list[Tensor]
    """of this process's batch, empty if there is none for it; see `Harvested`"""
    limit: int | None
    """see `Position`"""


class SharedHarvester(Harvester):
    """A `Harvester` of which every process has one.

    Args:
        layout: which process needs which layers.
        lens, layers, hook_in, hook_out, excluded, like: of all layers, see `Harvester`. Rows travel as the model has
            them, and are brought to `like` where they arrive.
    """

    def __init__(self, layout: Layout, *args: Any) -> None:
        super().__init__(*args)
        self.layout = layout
        self.world = layout.world
        self.arriving, self.like = self.like, None
        assert self.arriving is not None
        sites = {layer: [2 * i, 2 * i + 1] for i, layer in enumerate(self.layers)}
        self.wanted = [
            [site for layer in layout.held_by(rank) for site in sites[layer]] for rank in range(self.world.size)
        ]
        self.sites = self.wanted[self.world.rank]

    def rounds(self, batches: Iterable[Batch], start: Position | None = None) -> Generator[Round, None, None]:
        """Run one batch of every round. Raises as `harvest`."""
        counted = self.counted(batches, start)
        limit = None if start is None else start.limit
        while every := list(islice(counted, self.world.size)):
            rows: list[Tensor] = []
            if self.world.rank < len(every):
                mine = every[self.world.rank]
                rows, limit = self._rows(mine.tokens, mine.keep, limit)
            made = [Round(every, rows, limit)]
            del rows
            yield made.pop()

    def exchanged(self, rounds: Iterator[Round]) -> Iterator[Harvested]:
        """All batches of every round, with the rows that are wanted here.

        Raises:
            ValueError: the processes do not have the same prompts. Also whatever a process met in the model.
        """
        while True:
            with self.world.together():
                mine = next(rounds, None)
            told = self.world.objects(None if mine is None else self._header(mine))
            if len({None if one is None else one.prompts for one in told}) > 1:
                raise ValueError(
                    "train: the processes read different prompts; give each the same tokens, mask and seed, and every "
                    "one will run its own part of them"
                )
            if mine is None:
                return
            limits = [one.limit for one in told if one.limit is not None]
            shapes = next(one.shapes for one in told if one.shapes)
            arriving = self._sent(mine, shapes) if len({tuple(w) for w in self.wanted}) > 1 else None
            for i, batch in enumerate(mine.counted):
                rows = self._told(i, mine, shapes) if arriving is None else arriving.pop(0)
                position = batch.position._replace(limit=min(limits, default=None))
                made = [Harvested([row.to(self.arriving) for row in rows], batch.token_ids, position)]
                del rows
                yield made.pop()

    def _header(self, mine: Round) -> Header:
        shapes = [(row.shape[1], row.dtype) for row in mine.rows]
        prompts = len(mine.counted), mine.counted[-1].position.checksum
        return Header(prompts, mine.limit, shapes)

    def _told(self, i: int, mine: Round, shapes: list[Shape]) -> list[Tensor]:
        """The rows of the i-th batch, which everybody wants."""
        return [
            self.world.told(mine.rows[site].to(self._device).contiguous(), i)
            if i == self.world.rank
            else self.world.told(self._room(mine.counted[i], shapes[site]), i)
            for site in self.sites
        ]

    def _sent(self, mine: Round, shapes: list[Shape]) -> list[list[Tensor]]:
        """Of every batch the rows that are wanted here: each process sends the others theirs, all at once."""
        group, waiting, arriving = self.world.group, [], []
        own = [row.to(self._device).contiguous() for row in mine.rows]
        for i, batch in enumerate(mine.counted):
            if i == self.world.rank:
                arriving.append([own[site] for site in self.sites])
                continue
            rooms = {site: self._room(batch, shapes[site]) for site in self.sites}
            waiting += [dist.P2POp(dist.irecv, room, i, group, tag=site) for site, room in rooms.items()]
            arriving.append(list(rooms.values()))
        if own:
            waiting += [
                dist.P2POp(dist.isend, own[site], rank, group, tag=site)
                for rank in range(self.world.size)
                if rank != self.world.rank
                for site in self.wanted[rank]
            ]
        for work in dist.batch_isend_irecv(waiting) if waiting else []:
            work.wait()
        return arriving

    def _room(self, batch: Counted, shape: Shape) -> Tensor:
        width, dtype = shape
        return torch.empty(len(batch.keep), width, dtype=dtype, device=self._device)

    @property
    def _device(self) -> torch.device:
        """Where rows travel."""
        assert self.arriving is not None
        return self.arriving.device


Shape = tuple[int, torch.dtype]
"""width and dtype of the rows of a site"""


class Header(NamedTuple):
    """What the processes tell each other of a round before rows travel."""

    prompts: tuple[int, int]
    """how many batches it has, and the checksum of all up to there"""
    limit: int | None
    shapes: list[Shape]


class SharedHarvest(Harvest):
    """A `Harvest` of which every process has one, of the layers that it trains."""

    _harvester: SharedHarvester

    def state_dict(self) -> dict[str, Any]:
        """With the rows under the numbers that they have in a run of all layers."""
        state = super().state_dict()
        rows = state["mixing"]["rows"]
        state["mixing"]["rows"] = {str(site): rows[str(i)] for i, site in enumerate(self._harvester.sites) if rows}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a state with the rows of these layers, among others."""
        rows = state["mixing"].get("rows", {})
        own = {str(i): rows[str(site)] for i, site in enumerate(self._harvester.sites) if rows}
        super().load_state_dict({**state, "mixing": {**state["mixing"], "rows": own}})

    def _made(self, start: Position) -> Generator[Any, None, None]:
        return self._harvester.rounds(self._batches(), start)

    def _delivered(self, source: Iterator[Any]) -> Iterator[Harvested]:
        return self._harvester.exchanged(source)
