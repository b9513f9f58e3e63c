"""Which edges of a target are worth keeping."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.ops import topk_select


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

    def thinned(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """Edges (B, n_sources) with zeros for what does not stay, and the signed mass of that, (B)."""
        if self.keeps_all:
            return block, block.new_zeros(len(block))
        stays = self.kept(block)
        return block.where(stays, 0), block.masked_fill(stays, 0).sum(1)

    def kept(self, block: Tensor) -> Tensor:
        """Mask of what stays of edges (B, n_sources); among equal sizes, the earlier source."""
        size = block.abs()
        total = size.sum(1, keepdim=True, dtype=torch.float64)
        largest, sources = self._largest(size)
        stays = largest > 0
        if self.mass < 1:
            order = torch.argsort(largest, dim=1, descending=True, stable=True)
            ordered = largest.gather(1, order).double()
            before = ordered.cumsum(1) - ordered
            stays &= torch.zeros_like(stays).scatter_(1, order, before < self.mass * total)
        return torch.zeros_like(block, dtype=torch.bool).scatter_(1, sources, stays)

    def _largest(self, size: Tensor) -> tuple[Tensor, Tensor]:
        """The largest of each row, as many as may stay, and where they stand, ascending."""
        if self.per_target is None or self.per_target >= size.shape[1]:
            return size, torch.arange(size.shape[1], device=size.device).expand_as(size)
        values, sources = topk_select(size, self.per_target)
        return values, sources.long()
