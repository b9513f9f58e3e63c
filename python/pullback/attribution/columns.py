"""Which targets of several prompts share a column of a sweep."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.attribution.stack import Stack
from pullback.attribution.targets import Targets, vectors_at_stream
from pullback.lens.depth import n_depths

CONES = 8  # groups of positions for each prompt: more of them waste less and make smaller products
ROWS = 4096  # gradients that are multiplied at once on a CPU: more of them leave its cache
FEWEST = 16  # columns of a sweep, however long the prompts


@dataclass(frozen=True)
class Columns:
    """Targets of Q prompts in n columns. Prompts do not mix, so a column takes one target of each of them, of a common
    depth and cone; where a prompt has fewer such targets than another, its part of the column is 0.

    Columns are sorted by causal cone, and within one from the top of the stream down.
    """

    cone: Tensor  # (n)
    depth: Tensor  # (n), see `Targets.depth`
    vectors: Tensor  # (Q, n, d), as read at the stream
    pos: Tensor  # (Q, n)
    of_target: Tensor  # (B): the column of each target

    def part(self, which: slice) -> Columns:
        return Columns(
            self.cone[which], self.depth[which], self.vectors[:, which], self.pos[:, which], self.of_target[:0]
        )

    def reach_of(self, which: slice) -> int:
        """Positions that matter to some of the columns."""
        return int(self.pos[:, which].max()) + 1

    def sweeps(self) -> Iterator[slice]:
        """Neighbouring columns of one cone, as many as are worth multiplying at once. Of several prompts they are many
        enough to go by depth as well: then all sources below matter to all of them."""
        start, depths = 0, int(self.depth.max()) + 1
        key = self.cone if len(self.pos) == 1 else self.cone * depths + self.depth
        for size in torch.unique_consecutive(key, return_counts=True)[1].tolist():
            rows = self.reach_of(slice(start, start + size)) * len(self.pos)
            step = max(FEWEST, ROWS // rows) if self.pos.device.type == "cpu" else size
            for first in range(start, start + size, step):
                yield slice(first, min(first + step, start + size))
            start += size


def share_columns(stack: Stack, targets: Targets) -> Columns:
    """Columns for targets of every prompt of a stack."""
    Q, T = stack.n_prompts, stack.n_pos
    vectors, depth = vectors_at_stream(stack, targets), targets.depth
    prompt, pos = targets.pos // T, targets.pos % T
    depths = n_depths(stack.n_layers)
    cone = pos // -(-T // (CONES * Q))
    groups, group = torch.unique(cone * depths + depths - 1 - depth, return_inverse=True)

    # A target's place among those of its group and prompt; a group has as many columns as its fullest prompt needs.
    run = group * Q + prompt
    order = torch.argsort(run, stable=True)
    counts = torch.bincount(run, minlength=len(groups) * Q)
    place = torch.empty_like(run)
    place[order] = torch.arange(len(run), device=run.device) - (counts.cumsum(0) - counts)[run[order]]
    width = counts.view(len(groups), -1).amax(1)
    column = (width.cumsum(0) - width)[group] + place

    n = int(width.sum())
    laid = vectors.new_zeros(Q, n, vectors.shape[1])
    laid[prompt, column] = vectors
    laid_pos = pos.new_zeros(Q, n)
    laid_pos[prompt, column] = pos
    return Columns(
        cone=(groups // depths).repeat_interleave(width),
        depth=(depths - 1 - groups % depths).repeat_interleave(width),
        vectors=laid,
        pos=laid_pos,
        of_target=column,
    )
