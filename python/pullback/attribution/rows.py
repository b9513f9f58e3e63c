"""Rows of edges as they come from an engine, kept sparse, and the influence that ranks what comes next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pullback.attribution.influence import EPS
from pullback.attribution.local import Layout
from pullback.attribution.targets import LogitTargets

CHUNK_ENTRIES = 1 << 20


class Rows(NamedTuple):
    """B rows without zeros. A target is named by its place among the active features, or -1 - k for the k-th logit."""

    names: Tensor  # (B)
    layers: Tensor  # (B), of the targets
    own: Tensor  # (B), the constant of the target itself
    zeroed: Tensor  # (B), mass of zeroed positions
    totals: Tensor  # (B) float64, of the sizes of edges that count in scores
    counts: Tensor  # (B), edges
    sources: Tensor  # (n_edges) int32
    weights: Tensor  # (n_edges)

    def rows(self) -> Tensor:
        """The row of each edge, (n_edges)."""
        return torch.repeat_interleave(torch.arange(len(self.counts)), self.counts)

    def of_one_layer(self) -> Iterator[Rows]:
        """Neighbouring rows whose targets are of one layer, together."""
        sizes = torch.unique_consecutive(self.layers, return_counts=True)[1].tolist()
        edges = [int(part.sum()) for part in self.counts.split(sizes)]
        per_row = [column.split(sizes) for column in self[:-2]]
        per_edge = [column.split(edges) for column in self[-2:]]
        return (Rows(*parts) for parts in zip(*per_row, *per_edge, strict=True))


class EdgeRows:
    """Rows of edges over all sources, in the order they come."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._counted = layout.counts_in_scores()
        self._blocks: list[Rows] = []

    def append(self, names: Tensor, layers: Tensor, own: Tensor, block: Tensor, zeroed: Tensor) -> None:
        """Targets' names, layers and own constants (B), edges (B, n_sources), zeroed mass (B)."""
        sources, weights, totals = [], [], []
        counted = self._counted.to(block.device)
        # int64 places of the entries of a whole block would be several times its size: a few rows at a time.
        for part in block.split(max(1, CHUNK_ENTRIES // self.layout.n_sources)):
            flat = part.flatten()
            places = flat.nonzero()[:, 0]
            sources.append((places % self.layout.n_sources).to(torch.int32).cpu())
            weights.append(flat[places].cpu())
            totals.append((part * counted).abs().sum(1, dtype=torch.float64).cpu())
        self._blocks.append(
            Rows(
                names=names.cpu(),
                layers=layers.cpu(),
                own=own.cpu(),
                zeroed=zeroed.cpu(),
                totals=torch.cat(totals),
                counts=block.count_nonzero(1).cpu(),
                sources=torch.cat(sources),
                weights=torch.cat(weights),
            )
        )

    def joined(self) -> Rows:
        return Rows(*(torch.cat(column) for column in zip(*self._blocks, strict=True)))

    def influence(self, logits: LogitTargets) -> Tensor:
        """Influence of every active feature on the logits through the rows there are so far, (n_features) float64.

        Edges lead down, so what flows into a target is known once all rows of higher layers have been counted.
        """
        features = self.layout.all_features
        weight = logits.probabilities.cpu().double()
        found = weight.new_zeros(self.layout.n_sources)
        parts = [part for block in self._blocks for part in block.of_one_layer()]
        for part in sorted(parts, key=lambda part: -int(part.layers[0])):
            reached = found[(features.start + part.names).clamp(min=0)]
            into = torch.where(part.names < 0, weight[(-1 - part.names).clamp(min=0)], reached)
            shares = torch.repeat_interleave(into / part.totals.clamp(min=EPS), part.counts)
            found.index_add_(0, part.sources, shares.mul_(part.weights.abs()))
        return found[features]
