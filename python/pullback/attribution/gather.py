"""From the parts of a sweep to every prompt's rows of edges."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pullback.attribution.columns import Columns, share_columns
from pullback.attribution.linear import sweep
from pullback.attribution.local import LocalModel
from pullback.attribution.stack import Stack
from pullback.attribution.targets import Targets
from pullback.lens.depth import n_depths
from pullback.ops.edges import SpanRows, empty_rows, take_spans


class Rows(NamedTuple):
    """What one prompt's targets have, in their order."""

    depth: Tensor  # (B)
    own: Tensor  # (B), the constant of the target itself
    zeroed: Tensor  # (B), mass of zeroed positions
    edges: SpanRows


def linear_rows(local: LocalModel, targets: Targets) -> Rows:
    """Direct effects of the sources of one prompt on B targets."""
    return stacked_rows(local.stack, targets)[0]


def stacked_rows(stack: Stack, targets: Targets) -> list[Rows]:
    """The same for every prompt of a stack.

    A row lists what can matter to its target at its depth, of the positions that its part of the sweep reaches.
    """
    columns = share_columns(stack, targets)
    Q, of_target, prompt_of = stack.n_prompts, columns.of_target.cpu(), targets.pos.cpu() // stack.n_pos
    order = torch.argsort(of_target * Q + prompt_of)  # rows by column, those of a part of the sweep together
    column, prompt = of_target[order], prompt_of[order]
    kinds, kind = _kinds(stack, columns)
    rows = empty_rows(
        columns.table,
        prompt * len(kinds) + kind[column],
        stack.shapes(kinds),
        max(layout.n_sources for layout in stack.layouts),
    )
    zeroed = torch.empty(len(column), dtype=columns.table.dtype)
    before = [0, *torch.bincount(column, minlength=len(kind)).cumsum(0).tolist()]
    for part in sweep(stack, columns):
        own = slice(before[part.which.start], before[part.which.stop])
        at = column[own] - part.which.start
        take_spans(part.edges.cpu(), at, rows[own])
        zeroed[own] = part.zeroed.cpu()[prompt[own], at]
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order))
    by_prompt = torch.argsort(prompt_of, stable=True)
    depth, own_constant = targets.depth.cpu()[by_prompt], targets.own.cpu()[by_prompt]
    places = places[by_prompt]
    sizes = torch.bincount(prompt_of, minlength=Q).tolist()
    of_prompts = zip(*(t.split(sizes) for t in (depth, own_constant, places)), stack.layouts, strict=True)
    return [
        Rows(depth, own, zeroed[own_places], replace(rows[own_places], n_sources=layout.n_sources))
        for depth, own, own_places, layout in of_prompts
    ]


def _kinds(stack: Stack, columns: Columns) -> tuple[list[tuple[int, int]], Tensor]:
    """(positions reached, depth) of rows, and which of them each column has, (n)."""
    depths = n_depths(stack.n_layers)
    sweeps = list(columns.sweeps())
    reach = torch.tensor([columns.reach_of(which) for which in sweeps])
    reach = reach.repeat_interleave(torch.tensor([which.stop - which.start for which in sweeps]))
    found, kind = torch.unique(reach * depths + columns.depth.cpu(), return_inverse=True)
    return [divmod(key, depths) for key in found.tolist()], kind
