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
    rounds = [one.rounds() for one in batches]
    size = min(one.batch_size for one in batches)
    while True:
        wanted = [next(names, _NOTHING) for names in rounds]
        longest = max(len(names) for names in wanted)
        if longest == 0:
            return
        for start in range(0, longest, size):
            _add(stack, batches, [names[start : start + size] for names in wanted])


_NOTHING = torch.zeros(0, dtype=torch.long)


def _add(stack: Stack, batches: Sequence[Batches], names: Sequence[Tensor]) -> None:
    """Pull back targets of these names, of each prompt, and hand it their rows."""
    targets = [one.targets(own) for one, own in zip(batches, names, strict=True)]
    columns = share_columns([one.local for one in batches], targets)
    used = torch.stack([torch.bincount(own, minlength=len(columns.depth)) for own in columns.of_target])
    blocks: list[list[tuple[Tensor, Tensor]]] = [[] for _ in batches]
    zeroed: list[list[Tensor]] = [[] for _ in batches]
    for part in sweep(stack, columns):
        edges, sources = _by_prompt(stack, part, int(columns.depth[part.which].max()))
        for q, n in enumerate(used[:, part.which].sum(1).tolist()):
            # A prompt with fewer targets in a part than another has them in its first columns.
            blocks[q].append((edges[:n, q], sources[q]))
            zeroed[q].append(part.zeroed[q, :n])
    for q, one in enumerate(batches):
        order = torch.argsort(columns.of_target[q])
        own = targets[q][order]
        one.edges.append_blocks(names[q][order.cpu()], own.layer, own.own, torch.cat(zeroed[q]), blocks[q])


def _by_prompt(stack: Stack, part: Part, depth: int) -> tuple[Tensor, Tensor]:
    """Edges of a part from what can matter at a depth, (n, Q, m), and which sources that are, (Q, m), by the layout of
    each prompt."""
    spans = {which: span for which, span in part.layout.spans(depth).items() if which not in stack.silent}
    edges = [part.edges[:, span].unflatten(1, (stack.n_prompts, -1)) for span in spans.values()]
    widths = torch.tensor([span.shape[2] for span in edges])
    layouts = [own.spans(depth) for own in stack.layouts]
    first = torch.tensor([[own[which].start for which in spans] for own in layouts])
    within = torch.arange(int(widths.sum())) - (widths.cumsum(0) - widths).repeat_interleave(widths)
    return torch.cat(edges, 2), first.repeat_interleave(widths, 1) + within
