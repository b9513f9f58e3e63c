"""Rows of edges as they come from an engine, kept sparse, and the influence that ranks what comes next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    """Rows of edges over all sources, in the order they come; of each row, the edges that a rule keeps.

    Args:
        ranked: whether `influence` will be asked for; rows then know the total of all their edges.
    """

    def __init__(self, layout: Layout, rule: EdgeRule, *, ranked: bool = True) -> None:
        self.layout, self.rule, self.ranked = layout, rule, ranked
        self._counted = layout.counts_in_scores()
        self._blocks: list[Rows] = []

    def append(self, names: Tensor, layers: Tensor, own: Tensor, block: Tensor, zeroed: Tensor) -> None:
        """Targets' names, layers and own constants (B), edges (B, n_sources), zeroed mass (B)."""
        # int64 places of the entries of a whole block would be several times its size: a few rows at a time.
        parts = block.split(max(1, CHUNK_ENTRIES // self.layout.n_sources))
        every = torch.arange(self.layout.n_sources)
        self.append_blocks(names, layers, own, zeroed, [(part, every) for part in parts])

    def append_blocks(
        self, names: Tensor, layers: Tensor, own: Tensor, zeroed: Tensor, blocks: Sequence[tuple[Tensor, Tensor]]
    ) -> None:
        """Targets' names, layers and own constants (B), zeroed mass (B); their edges some rows at a time: (b, m), and
        the sources (m), ascending, from which there are any."""
        found = self._whole(blocks) if self.rule.keeps_all and not self.ranked else self._thinned(blocks)
        sources, weights, counts, lost, totals = found
        self._blocks.append(
            Rows(
                names=names.cpu(),
                layers=layers.cpu(),
                own=own.cpu(),
                dropped=zeroed.cpu() + lost,
                totals=totals,
                counts=counts,
                sources=sources,
                weights=weights,
            )
        )

    def _whole(self, blocks: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
        """Of edges that all stay: sources and weights but for zeros, row by row; of each row how many they are; and,
        not asked for, what others sum to and the total."""
        weights = torch.cat([block.flatten() for block, _ in blocks]).cpu()
        sources = torch.cat([own.to(torch.int32).repeat(len(block)) for block, own in blocks])
        sizes = torch.tensor([block.shape for block, _ in blocks])
        counts = sizes[:, 1].repeat_interleave(sizes[:, 0])
        stays = weights != 0
        if not bool(stays.all()):
            before = torch.nn.functional.pad(stays.cumsum(0), (1, 0))
            counts = before[counts.cumsum(0)].diff(prepend=before[:1])
            sources, weights = sources[stays], weights[stays]
        return sources, weights, counts, weights.new_zeros(len(counts)), torch.zeros(len(counts), dtype=torch.float64)

    def _thinned(self, blocks: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
        """Of edges that a rule cuts: sources and weights of those that stay, row by row; of each row how many they are,
        what the others sum to, and the total of all."""
        columns: list[tuple[Tensor, ...]] = []
        for block, own in blocks:
            counted = self._counted[own].to(block.device)
            thin, lost = self.rule.thinned(block)
            flat = thin.flatten()
            places = flat.nonzero()[:, 0]
            sources, counts = own.to(torch.int32)[places.cpu() % block.shape[1]], thin.count_nonzero(1)
            totals = (block * counted).abs().sum(1, dtype=torch.float64)
            columns.append((sources, flat[places].cpu(), counts.cpu(), lost.cpu(), totals.cpu()))
        return tuple(torch.cat(column) for column in zip(*columns, strict=True))

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
