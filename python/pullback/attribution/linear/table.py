"""The vectors of targets as they read the stream, by depth."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pullback.attribution.stack import Stack
from pullback.attribution.targets import Targets, read_at_stream
from pullback.lens.depth import n_depths


class Table(NamedTuple):
    """Targets (B) as factor times a row of vectors (U, d), which are sorted by the depth at which they are read."""

    vectors: Tensor
    starts: list[int]  # of each depth among the vectors
    row: Tensor  # (B)
    factor: Tensor  # (B)
    depth: Tensor  # (B)

    @property
    def readers(self) -> float:
        """Targets that read a vector, on average."""
        return len(self.row) / len(self.vectors)

    def of(self, depth: int) -> Tensor:
        return self.vectors[self.starts[depth] : self.starts[depth + 1]]


def table_of(stack: Stack, targets: Targets) -> Table:
    (vectors, factor), depth, depths = read_at_stream(stack, targets), targets.depth, n_depths(stack.n_layers)
    read_at = depth.new_full((len(vectors),), depths).scatter_(0, targets.row, depth)  # what nobody reads comes last
    order = torch.argsort(read_at, stable=True)
    starts = [0, *torch.bincount(read_at, minlength=depths).cumsum(0).tolist()]
    return Table(vectors[order], starts, inverse(order)[targets.row], factor, depth)


def inverse(order: Tensor) -> Tensor:
    """Where each of n numbers stands in an order of all of them, (n)."""
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    return places
