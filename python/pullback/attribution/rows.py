"""Rows of edges as they come from an engine, kept sparse, and the influence that ranks what comes next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pullback.attribution.explained import Explained
from pullback.attribution.influence import EPS, Run, flow
from pullback.attribution.local import Layout
from pullback.attribution.rules import EdgeRule

CHUNK_ENTRIES = 1 << 20


class Rows(NamedTuple):
    """B rows without zeros. A target is named by its place among the active features, or -1 - k for the k-th thing
    explained that is none of them."""

    names: Tensor  # (B)
    layers: Tensor  # (B), of the targets
    own: Tensor  # (B), the constant of the target itself
    dropped: Tensor  # (B), mass of zeroed positions, and of edges that were not kept
    totals: Tensor  # (B) float64, of the sizes of all edges that count in scores, kept or not
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
    """Rows of edges over all sources, in the order they come; of each row, the edges that a rule keeps."""

    def __init__(self, layout: Layout, rule: EdgeRule) -> None:
        self.layout, self.rule = layout, rule
        self._counted = layout.counts_in_scores()
        self._blocks: list[Rows] = []

    def append(self, names: Tensor, layers: Tensor, own: Tensor, block: Tensor, zeroed: Tensor) -> None:
        """Targets' names, layers and own constants (B), edges (B, n_sources), zeroed mass (B)."""
        sources, weights, totals, lost, counts = [], [], [], [], []
        counted = self._counted.to(block.device)
        # int64 places of the entries of a whole block would be several times its size: a few rows at a time.
        for part in block.split(max(1, CHUNK_ENTRIES // self.layout.n_sources)):
            totals.append((part * counted).abs().sum(1, dtype=torch.float64).cpu())
            thin, mass = self.rule.thinned(part)
            flat = thin.flatten()
            places = flat.nonzero()[:, 0]
            sources.append((places % self.layout.n_sources).to(torch.int32).cpu())
            weights.append(flat[places].cpu())
            lost.append(mass.cpu())
            counts.append(thin.count_nonzero(1).cpu())
        self._blocks.append(
            Rows(
                names=names.cpu(),
                layers=layers.cpu(),
                own=own.cpu(),
                dropped=zeroed.cpu() + torch.cat(lost),
                totals=torch.cat(totals),
                counts=torch.cat(counts),
                sources=torch.cat(sources),
                weights=torch.cat(weights),
            )
        )

    def joined(self) -> Rows:
        return Rows(*(torch.cat(column) for column in zip(*self._blocks, strict=True)))

    def influence(self, explained: Explained) -> Tensor:
        """Influence of every active feature on what is explained through the rows there are so far, (n_features)
        float64. What is not kept of a row counts in its total, so that each edge has its share of the whole."""
        features, n_sources = self.layout.all_features, self.layout.n_sources
        weight = torch.zeros(n_sources + len(explained), dtype=torch.float64)
        weight[n_sources:] = explained.weights
        weight[features.start + explained.features] = explained.feature_weights.double()
        parts = [part for block in self._blocks for part in block.of_one_layer()]
        runs = (
            Run(
                targets=torch.where(part.names < 0, n_sources - 1 - part.names, features.start + part.names),
                counts=part.counts,
                sources=part.sources,
                scale=1 / part.totals.clamp(min=EPS),
                sizes=part.weights.abs(),
            )
            for part in sorted(parts, key=lambda part: -int(part.layers[0]))
        )
        return flow(weight, runs)[features]
