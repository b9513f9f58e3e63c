"""Graphs of several prompts of one length, whose targets are pulled back in the same sweeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from pullback.attribution.batches import Batches
from pullback.attribution.build import attribute_local, begin, finish
from pullback.attribution.columns import share_columns
from pullback.attribution.graph import Graph
from pullback.attribution.linear import Part, sweep
from pullback.attribution.local import LocalModel
from pullback.attribution.settings import Settings
from pullback.attribution.stack import Stack
from pullback.lens import Lens
from pullback.ops import SparseActivations

Result = TypeVar("Result")


@torch.no_grad()
def attribute_together(
    lens: Lens, locals: Sequence[LocalModel], settings: Settings, metas: Sequence[Mapping[str, Any]]
) -> list[Graph | str]:
    """The graph of every prompt's local model, all of one length, as `attribute_local` makes it; or why it has none.

    A prompt's edges do not depend on its company, but for the order in which products are summed.
    """
    if settings.engine != "linear":
        return [
            _or_why(attribute_local, lens, local, settings, meta) for local, meta in zip(locals, metas, strict=True)
        ]
    begun = [_or_why(begin, lens, local, settings) for local in locals]
    able = [one for one in begun if isinstance(one, Batches)]
    if able:
        _rows_of_all(able)
    return [
        _or_why(finish, lens, one, meta) if isinstance(one, Batches) else one
        for one, meta in zip(begun, metas, strict=True)
    ]


def _or_why(do: Callable[..., Result], *arguments: Any) -> Result | str:
    """What a function returns, or the sentence of the ValueError that it raises."""
    try:
        return do(*arguments)
    except ValueError as error:
        return str(error)


def _rows_of_all(batches: Sequence[Batches]) -> None:
    """Every prompt's rounds side by side, until the last of them has all its rows."""
    stack = Stack([one.local for one in batches])
    parts = _Parts(stack)
    rounds = [one.rounds() for one in batches]
    size = min(one.batch_size for one in batches)
    while True:
        wanted = [next(names, _NOTHING) for names in rounds]
        longest = max(len(names) for names in wanted)
        if longest == 0:
            return
        for start in range(0, longest, size):
            parts.add(batches, [names[start : start + size] for names in wanted])


_NOTHING = torch.zeros(0, dtype=torch.long)


class _Parts:
    """The rows that a sweep over a stack gives, handed to the prompts they belong to."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self._alive: dict[tuple[int, int], list[tuple[Tensor, list[slice]]]] = {}

    def add(self, batches: Sequence[Batches], names: Sequence[Tensor]) -> None:
        targets = [one.targets(own) for one, own in zip(batches, names, strict=True)]
        columns = share_columns(self.stack, targets)
        order = [torch.argsort(own) for own in columns.of_target]
        placed = [own[by] for own, by in zip(columns.of_target, order, strict=True)]
        for part in sweep(self.stack, columns):
            ends = torch.tensor([part.which.start, part.which.stop], device=columns.pos.device)
            for q, (sources, spans) in enumerate(self._sources(int(columns.depth[part.which].max()), part)):
                first, last = torch.searchsorted(placed[q], ends).tolist()
                if first == last:
                    continue
                at, rows = placed[q][first:last] - part.which.start, order[q][first:last]
                block = torch.cat([part.edges[:, span] for span in spans], 1)
                own, lost = targets[q][rows], part.zeroed[q, at]
                batches[q].edges.append(names[q][rows.cpu()], own.layer, own.own, block[at], lost, sources)

    def _sources(self, depth: int, part: Part) -> list[tuple[Tensor, list[slice]]]:
        """The sources that something at a depth and the part's positions can depend on, of each prompt: by its own
        layout, and where they stand in the part's rows."""
        if (depth, part.P) not in self._alive:
            acts = self.stack.reach(part.P).acts
            self._alive[depth, part.P] = [self._of_prompt(q, depth, part, acts) for q in range(self.stack.n_prompts)]
        return self._alive[depth, part.P]

    def _of_prompt(
        self, q: int, depth: int, part: Part, acts: Mapping[int, SparseActivations]
    ) -> tuple[Tensor, list[slice]]:
        P, own = part.P, self.stack.locals[q].layout
        # Of features the prompt has its entries; of all else, something at each of its positions.
        ends = {
            part.layout.features[i].start: a.indptr[[q * P, (q + 1) * P]].tolist() for i, a in acts.items() if a.nnz
        }
        spans = []
        for span in part.layout.spans(depth):
            first, last = ends.get(span.start, (q * P, (q + 1) * P)) if span.start < span.stop else (0, 0)
            spans.append(slice(span.start + first, span.start + last))
        sizes = [span.stop - span.start for span in spans]
        firsts = [span.start for span in own.spans(depth)]
        sources = [torch.arange(first, first + size) for first, size in zip(firsts, sizes, strict=True)]
        return torch.cat(sources).to(self.stack.embed.device), spans
