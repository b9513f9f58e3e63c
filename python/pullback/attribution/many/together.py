"""Graphs of several prompts of one length, whose targets are pulled back in the same sweeps."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from pullback.attribution import nodes as k
from pullback.attribution.batches import Batches
from pullback.attribution.build import attribute_local, begin, finish
from pullback.attribution.gather import stacked_rows
from pullback.attribution.graph import Graph
from pullback.attribution.linear.prompt_by_prompt import suits
from pullback.attribution.local import LocalModel
from pullback.attribution.memory import BYTES_PER_EDGE, expected_edges
from pullback.attribution.settings import Settings
from pullback.attribution.source_nodes import source_nodes
from pullback.attribution.stack import Stack
from pullback.attribution.targets import Targets, feature_batch, joined
from pullback.lens import Lens

Result = TypeVar("Result")
HELD = 2 * 2**30  # bytes of edges of prompts whose graphs are made together


def prompts_held_together(local: LocalModel, settings: Settings) -> int:
    """As many prompts like this one as have edges that may be held at once, at least one."""
    edges = expected_edges(local, settings.max_feature_nodes)
    if settings.edges_per_target is not None:
        targets = sum(acts.nnz for acts in local.active.values())
        edges = min(edges, settings.edges_per_target * targets)
    return max(1, HELD // max(1, BYTES_PER_EDGE * edges))


@torch.no_grad()
def attribute_together(
    lens: Lens, locals: Sequence[LocalModel], settings: Settings, metas: Sequence[Mapping[str, Any]]
) -> Iterator[Graph | str]:
    """The graph of every prompt's local model, all of one length, as `attribute_local` makes it; or why it has none.

    A prompt's edges do not depend on its company, but for the order in which products are summed. All edges are there
    when this returns; each graph is put together when it is asked for, so that its memory can serve the next one.
    """
    if settings.engine != "linear":
        return (
            _or_why(attribute_local, lens, local, settings, meta) for local, meta in zip(locals, metas, strict=True)
        )
    begun = [_or_why(begin, lens, local, settings) for local in locals]
    able = [one for one in begun if isinstance(one, Batches)]
    sources: Iterator[k.Nodes] = iter(())
    if able:
        stack = Stack([one.local for one in able])
        _rows_of_all(stack, able)
        sources = iter(source_nodes(stack))
    return (
        _or_why(finish, lens, one, next(sources), meta) if isinstance(one, Batches) else one
        for one, meta in zip(begun, metas, strict=True)
    )


def _or_why(do: Callable[..., Result], *arguments: Any) -> Result | str:
    """What a function returns, or the sentence of the ValueError that it raises."""
    try:
        return do(*arguments)
    except ValueError as error:
        return str(error)


def _rows_of_all(stack: Stack, batches: Sequence[Batches]) -> None:
    """Every prompt's rounds side by side, until the last of them has all its rows."""
    rounds = [one.rounds() for one in batches]
    # Where each target's gradients are gone before the next one's come, all may be named together.
    size = sys.maxsize if suits(stack) else min(one.batch_size for one in batches)
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
    found = stacked_rows(stack, _targets(stack, batches, names))
    for one, own, rows in zip(batches, names, found, strict=True):
        one.edges.append(own, rows)


def _targets(stack: Stack, batches: Sequence[Batches], names: Sequence[Tensor]) -> Targets:
    """Of all prompts, those of one in the order of its names: features, then what is explained besides."""
    device = stack.embed.device
    named = [own.to(device) for own in names]
    features = [own[own >= 0] for own in named]
    parts = [feature_batch(stack, *features)] if any(len(own) for own in features) else []
    for q, (one, own) in enumerate(zip(batches, named, strict=True)):
        besides = own[own < 0]
        if len(besides):
            targets = one.explained.targets[-1 - besides]
            parts.append(replace(targets, pos=targets.pos + q * stack.n_pos))
    return joined(parts)
