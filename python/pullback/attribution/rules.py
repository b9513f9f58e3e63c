"""Which edges of a target are worth keeping."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class EdgeRule:
    """Of each target's edges, the fewest that cover a share of their absolute mass, at most so many.

    The target's own constant is not among them: it always stays.
    """

    mass: float = 1.0
    per_target: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.mass <= 1:
            raise ValueError(f"attribute: edge_mass must lie in (0, 1], got {self.mass}")
        if self.per_target is not None and self.per_target < 1:
            raise ValueError(f"attribute: edges_per_target must be at least 1, got {self.per_target}")

    @property
    def keeps_all(self) -> bool:
        return self.mass == 1 and self.per_target is None

    def kept(self, block: Tensor) -> Tensor:
        """Mask of what stays of edges (B, n_sources); among equal sizes, the earlier source."""
        if self.keeps_all:
            return block != 0
        size = block.abs()
        order = torch.argsort(size, dim=1, descending=True, stable=True)
        largest = size.gather(1, order)
        stays = largest > 0
        if self.mass < 1:
            covered = largest.cumsum(1, dtype=torch.float64)
            stays &= covered - largest < self.mass * covered[:, -1:]
        if self.per_target is not None:
            stays[:, self.per_target :] = False
        return torch.zeros_like(stays).scatter_(1, order, stays)
