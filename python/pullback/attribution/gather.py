"""From the parts of a sweep to every prompt's rows of edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pullback.attribution.columns import Columns, share_columns
from pullback.attribution.linear import sweep
from pullback.attribution.local import LocalModel
from pullback.attribution.stack import Stack
from pullback.attribution.targets import Targets
from pullback.lens.depth import n_depths
from pullback.ops.edges import SpanRows, empty_rows, take_spans


def linear_rows(local: LocalModel, targets: Targets) -> tuple[SpanRows, Tensor]:
    """Direct effects of the sources of one prompt on B targets: edges, a row each, and the mass of zeroed positions
    (B)."""
    return stacked_rows(local.stack, [local], [targets])[0]


def stacked_rows(
    stack: Stack, locals: Sequence[LocalModel], targets: Sequence[Targets]
) -> list[tuple[SpanRows, Tensor]]:
    """The same for every prompt of a stack.

    A row lists what can matter to its target at its depth, of the positions that its part of the sweep reaches.
    """
    columns = share_columns(locals, targets)
    of_target = torch.cat(columns.of_target).cpu()
    sizes = [len(own) for own in columns.of_target]
    prompt = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    order = torch.argsort(of_target * len(sizes) + prompt)  # rows by column, those of a part of the sweep together
    column, prompt = of_target[order], prompt[order]
    kinds, kind = _kinds(stack, columns)
    rows = empty_rows(
        columns.vectors,
        prompt * len(kinds) + kind[column],
        stack.shapes(kinds),
        max(layout.n_sources for layout in stack.layouts),
    )
    zeroed = torch.empty(len(column), dtype=columns.vectors.dtype)
    before = [0, *torch.bincount(column, minlength=len(kind)).cumsum(0).tolist()]
    for part in sweep(stack, columns):
        own = slice(before[part.which.start], before[part.which.stop])
        at = column[own] - part.which.start
        take_spans(part.edges.cpu(), at, rows[own])
        zeroed[own] = part.zeroed.cpu()[prompt[own], at]
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order))
    return [
        (replace(rows[own], n_sources=layout.n_sources), zeroed[own])
        for own, layout in zip(places.split(sizes), stack.layouts, strict=True)
    ]


def _kinds(stack: Stack, columns: Columns) -> tuple[list[tuple[int, int]], Tensor]:
    """(positions reached, depth) of rows, and which of them each column has, (n)."""
    depths = n_depths(stack.n_layers)
    sweeps = list(columns.sweeps())
    reach = torch.tensor([columns.reach_of(which) for which in sweeps])
    reach = reach.repeat_interleave(torch.tensor([which.stop - which.start for which in sweeps]))
    found, kind = torch.unique(reach * depths + columns.depth.cpu(), return_inverse=True)
    return [divmod(key, depths) for key in found.tolist()], kind
