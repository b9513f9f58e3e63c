"""Rows of edges of every prompt, by whichever way of sweeping suits it."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pullback.attribution.linear.prompt_by_prompt import rows_prompt_by_prompt, suits
from pullback.attribution.linear.side_by_side import rows_side_by_side
from pullback.attribution.local import LocalModel
from pullback.attribution.stack import Stack
from pullback.attribution.targets import Targets
from pullback.ops.edges import SpanRows


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
    """The same for every prompt of a stack."""
    rows_of = rows_prompt_by_prompt if suits(stack) else rows_side_by_side
    edges, zeroed = rows_of(stack, targets)
    prompt_of = targets.pos.cpu() // stack.n_pos
    by_prompt = torch.argsort(prompt_of, stable=True)
    columns = (t.cpu()[by_prompt] for t in (targets.depth, targets.own, zeroed))
    sizes = torch.bincount(prompt_of, minlength=stack.n_prompts).tolist()
    parts = zip(*(t.split(sizes) for t in (*columns, by_prompt)), stack.layouts, strict=True)
    return [
        Rows(depth, own, lost, replace(edges[which], n_sources=layout.n_sources))
        for depth, own, lost, which, layout in parts
    ]
