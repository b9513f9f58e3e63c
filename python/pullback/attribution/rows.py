"""Rows of edges as they come from an engine, and the influence that ranks what comes next."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pullback.attribution.explained import Explained
from pullback.attribution.gather import Rows
from pullback.attribution.influence import EPS, must_be_finite
from pullback.attribution.local import Layout
from pullback.attribution.rules import EdgeRule
from pullback.ops.edges import SpanRows, csr_flow, span_counts, span_flow, span_pack, span_totals

CHUNK_ENTRIES = 1 << 20


class Edges(Protocol):
    """Edges of some rows, in one form or another."""

    def counts(self, ids: Tensor) -> Tensor:
        """How many of each row are of a source that has an id, Int32[Tensor, 'n_sources'], -1 for none."""
        ...

    def pack(self, ids: Tensor, begins: Tensor, counts: Tensor, sources: Tensor, weights: Tensor) -> Tensor:
        """Write those of each row, by id, from its place in `begins` on; returns what the others sum to."""
        ...

    def flow(self, targets: Tensor, scale: Tensor, total: Tensor) -> None:
        """total[source] += total[targets[r]] * scale[r] * |edge|, row by row."""
        ...


class Whole(NamedTuple):
    """All edges."""

    rows: SpanRows

    def counts(self, ids: Tensor) -> Tensor:
        return span_counts(self.rows, ids)

    def pack(self, ids: Tensor, begins: Tensor, counts: Tensor, sources: Tensor, weights: Tensor) -> Tensor:
        return span_pack(self.rows, ids, begins, counts, sources, weights)

    def flow(self, targets: Tensor, scale: Tensor, total: Tensor) -> None:
        span_flow(self.rows, targets, scale, total)


class Thinned(NamedTuple):
    """Edges that a rule keeps, row by row."""

    per_row: Tensor  # (B)
    sources: Tensor  # (n_edges) int32
    weights: Tensor  # (n_edges)

    def _row_of(self) -> Tensor:
        return torch.repeat_interleave(torch.arange(len(self.per_row)), self.per_row)

    def counts(self, ids: Tensor) -> Tensor:
        return torch.bincount(self._row_of()[ids[self.sources] >= 0], minlength=len(self.per_row))

    def pack(self, ids: Tensor, begins: Tensor, counts: Tensor, sources: Tensor, weights: Tensor) -> Tensor:
        new, row_of = ids[self.sources], self._row_of()
        stays = new >= 0
        at = torch.repeat_interleave(begins - (counts.cumsum(0) - counts), counts) + torch.arange(int(stays.sum()))
        sources[at], weights[at] = new[stays], self.weights[stays]
        return torch.zeros(len(counts), dtype=torch.float64).index_add_(
            0, row_of[~stays], self.weights[~stays].double()
        )

    def flow(self, targets: Tensor, scale: Tensor, total: Tensor) -> None:
        indptr = torch.nn.functional.pad(self.per_row.cumsum(0), (1, 0))
        csr_flow(torch.arange(len(targets)), targets, indptr, self.sources, scale, self.weights, total, sizes=True)


class Block(NamedTuple):
    """B rows whose targets are read at one depth, where that matters (-1: at any). A target is named by its place among
    the active features, or -1 - k for the k-th thing explained that is none of them."""

    depth: int
    names: Tensor  # (B)
    own: Tensor  # (B), the constant of the target itself
    dropped: Tensor  # (B), mass of zeroed positions, and of edges that were not kept
    totals: Tensor  # (B) float64, of the sizes of all edges that count in scores, kept or not; 0 if nothing is ranked
    edges: Edges


class EdgeRows:
    """Rows of edges over all sources, in the order they come; of each row, the edges that a rule keeps.

    Args:
        ranked: whether `influence` will be asked for; rows then know the total of all their edges.
    """

    def __init__(self, layout: Layout, rule: EdgeRule, *, ranked: bool = True) -> None:
        self.layout, self.rule, self.ranked = layout, rule, ranked
        self.blocks: list[Block] = []

    @cached_property
    def _counted(self) -> Tensor:
        return self.layout.counts_in_scores()

    def append(self, names: Tensor, found: Rows) -> None:
        """Targets' names (B), and what was found of them."""
        for depth, which in _by_depth(found.depth) if self.ranked else [(-1, torch.arange(len(names)))]:
            own_rows = found.edges[which]
            none = torch.zeros(len(which), dtype=torch.float64)
            totals = span_totals(own_rows, self._counted) if self.ranked else none
            edges, lost = (Whole(own_rows), none) if self.rule.keeps_all else self._thinned(own_rows)
            dropped = found.zeroed[which] + lost.to(found.zeroed.dtype)
            self.blocks.append(Block(depth, names.cpu()[which], found.own[which], dropped, totals, edges))

    def _thinned(self, rows: SpanRows) -> tuple[Thinned, Tensor]:
        """The edges that the rule keeps, and what the others of each row sum to."""
        columns: list[tuple[Tensor, ...]] = []
        # int64 places of the entries of a whole block would be several times its size: a few rows at a time.
        for some in torch.arange(len(rows)).split(max(1, CHUNK_ENTRIES // rows.n_sources)):
            thin, lost = self.rule.thinned(rows[some].dense())
            row, source = thin.nonzero(as_tuple=True)
            columns.append((torch.bincount(row, minlength=len(thin)), source.int(), thin[row, source], lost))
        counts, sources, weights, lost = (torch.cat(column) for column in zip(*columns, strict=True))
        return Thinned(counts, sources, weights), lost.double()

    def influence(self, explained: Explained) -> Tensor:
        """Influence of every active feature on what is explained through the rows there are so far, (n_features)
        float64. What is not kept of a row counts in its total, so that each edge has its share of the whole."""
        features, n_sources = self.layout.all_features, self.layout.n_sources
        total = torch.zeros(n_sources + len(explained), dtype=torch.float64)
        total[n_sources:] = explained.weights
        total[features.start + explained.features] = explained.feature_weights.double()
        # Edges lead down: what flows into a target is known once all rows of greater depths have been counted.
        for block in sorted(self.blocks, key=lambda block: -block.depth):
            targets = torch.where(block.names < 0, n_sources - 1 - block.names, features.start + block.names)
            block.edges.flow(targets, 1 / block.totals.clamp(min=EPS), total)
        return must_be_finite(total)[features]


def _by_depth(depths: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Each depth, and which of the rows are of it."""
    order = torch.argsort(depths, stable=True)
    found, sizes = torch.unique_consecutive(depths[order], return_counts=True)
    return zip(found.tolist(), order.split(sizes.tolist()), strict=True)
