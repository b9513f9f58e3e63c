"""Which targets of several prompts share a column of a sweep."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.attribution.linear.table import Table, table_of
from pullback.attribution.stack import Stack
from pullback.attribution.targets import Targets
from pullback.lens.depth import n_depths
from pullback.ops.frozen import Placed

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
    at: Placed  # (Q, n), rows of the table
    of_target: Tensor  # (B): the column of each target
    table: Table

    def of(self, which: slice) -> tuple[Tensor, Placed]:
        """Vectors of the depth of some columns, which have one in common, and where these stand, as rows of them."""
        depth = int(self.depth[which.start])
        row, factor, pos = (t[:, which] for t in self.at)
        return self.table.of(depth), Placed(row - self.table.starts[depth], factor, pos)

    def reach_of(self, which: slice) -> int:
        """Positions that matter to some of the columns."""
        return int(self.at.pos[:, which].max()) + 1

    def sweeps(self) -> Iterator[slice]:
        """Neighbouring columns of one cone, as many as are worth multiplying at once. Of several prompts they are many
        enough to go by depth as well: then all sources below matter to all of them."""
        start, depths = 0, int(self.depth.max()) + 1
        prompts, on_cpu = len(self.at.pos), self.at.pos.device.type == "cpu"
        key = self.cone if prompts == 1 else self.cone * depths + self.depth
        for size in torch.unique_consecutive(key, return_counts=True)[1].tolist():
            rows = self.reach_of(slice(start, start + size)) * prompts
            step = max(FEWEST, ROWS // rows) if on_cpu else size
            for first in range(start, start + size, step):
                yield slice(first, min(first + step, start + size))
            start += size


def share_columns(stack: Stack, targets: Targets) -> Columns:
    """Columns for targets of every prompt of a stack."""
    Q, T = stack.n_prompts, stack.n_pos
    table = table_of(stack, targets)
    prompt, pos = targets.pos // T, targets.pos % T
    depths = n_depths(stack.n_layers)
    cone = pos // -(-T // (CONES * Q))
    groups, group = torch.unique(cone * depths + depths - 1 - table.depth, return_inverse=True)

    # A target's place among those of its group and prompt; a group has as many columns as its fullest prompt needs.
    run = group * Q + prompt
    order = torch.argsort(run, stable=True)
    counts = torch.bincount(run, minlength=len(groups) * Q)
    place = torch.empty_like(run)
    place[order] = torch.arange(len(run), device=run.device) - (counts.cumsum(0) - counts)[run[order]]
    width = counts.view(len(groups), -1).amax(1)
    column = (width.cumsum(0) - width)[group] + place

    depth = (depths - 1 - groups % depths).repeat_interleave(width)
    n, any_row = len(depth), torch.tensor(table.starts, device=depth.device)[depth]
    at = Placed(any_row.repeat(Q, 1), table.factor.new_zeros(Q, n), pos.new_zeros(Q, n))
    for laid, own in zip(at, (table.row, table.factor, pos), strict=True):
        laid[prompt, column] = own
    return Columns(
        cone=(groups // depths).repeat_interleave(width),
        depth=depth,
        at=at,
        of_target=column,
        table=table,
    )
