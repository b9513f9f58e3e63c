"""Edges of attribution graphs, on the CPU: rows that list values of whole spans of sources, and rows in CSR.

The sources of a target are those before its position, below its layer: a few spans of all sources, which need not be
written down for every edge while rows are gathered and ranked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pullback import _C

from . import dispatch
from .cpu.borrow import View, view
from .cpu.pages import on_huge_pages
from .reference import edges as reference


class SpanShapes(NamedTuple):
    """Kinds of rows, each with the spans of sources that it lists."""

    span_ptr: Tensor
    """Int64[Tensor, "shapes+1"]: the spans of a shape"""
    spans: Tensor
    """Int64[Tensor, "spans 3"]: the first column in the block that a row is taken from, the first source, the length"""

    @staticmethod
    def of(shapes: Sequence[Sequence[tuple[int, int, int]]]) -> SpanShapes:
        """From each shape's (column, source, length)."""
        sizes = torch.tensor([0, *map(len, shapes)])
        spans = [span for shape in shapes for span in shape]
        return SpanShapes(sizes.cumsum(0), torch.tensor(spans, dtype=torch.long).view(-1, 3))

    @property
    def widths(self) -> Tensor:
        """Int64[Tensor, "shapes"]: edges of a row."""
        ends = torch.nn.functional.pad(self.spans[:, 2].cumsum(0), (1, 0))
        return ends[self.span_ptr].diff()


@dataclass(frozen=True)
class SpanRows:
    """Rows of edges over n_sources sources, which lie one after the other in `values`."""

    values: Tensor
    """Float[Tensor, "edges"]"""
    offsets: Tensor
    """Int64[Tensor, "rows"]: where a row begins"""
    shape_of: Tensor
    """Int64[Tensor, "rows"]"""
    shapes: SpanShapes
    n_sources: int
    nonzero: Tensor | None = None
    """Int64[Tensor, "rows"]: how many edges of a row are not 0, where that is known"""

    def __len__(self) -> int:
        return len(self.shape_of)

    def __getitem__(self, which: slice | Tensor) -> SpanRows:
        """Some of the rows, in the order asked for."""
        nonzero = None if self.nonzero is None else self.nonzero[which]
        return replace(self, offsets=self.offsets[which], shape_of=self.shape_of[which], nonzero=nonzero)

    def dense(self) -> Tensor:
        """Float[Tensor, "rows n_sources"], 0 where there is no edge."""
        out = self.values.new_zeros(len(self), self.n_sources)
        _run("span_dense", self, out)
        return out

    def views(self) -> list[View]:
        return [view(t) for t in (self.values, self.offsets, self.shape_of, *self.shapes)]


def empty_rows(like: Tensor, shape_of: Tensor, shapes: SpanShapes, n_sources: int) -> SpanRows:
    """Rows of these shapes, Int64[Tensor, "rows"], for values that are still to be written, of the dtype of `like`."""
    ends = torch.nn.functional.pad(shapes.widths[shape_of].cumsum(0), (1, 0))
    values = on_huge_pages(torch.empty(int(ends[-1]), dtype=like.dtype))
    return SpanRows(values, ends[:-1], shape_of, shapes, n_sources)


def from_dense(block: Tensor) -> SpanRows:
    """Rows of edges from all sources, (rows, n_sources)."""
    n, n_sources = block.shape
    offsets = torch.arange(n) * n_sources
    shapes = SpanShapes.of([[(0, 0, n_sources)]])
    return SpanRows(block.flatten(), offsets, torch.zeros(n, dtype=torch.long), shapes, n_sources)


def take_spans(block: Tensor, at: Tensor, rows: SpanRows) -> None:
    """Write into `rows` what those of a block (any, columns) that stand at Int64[Tensor, "rows"] have at the spans.

    Raises ValueError for rows and spans outside the block.
    """
    _run("take_spans", block, at, rows, rows.n_sources)


def span_counts(rows: SpanRows, ids: Tensor) -> Tensor:
    """Int64[Tensor, "rows"]: edges that are not 0, of sources with an id, Int32[Tensor, "n_sources"], -1 for none."""
    if rows.nonzero is not None and bool((ids >= 0).all()):
        return rows.nonzero
    counts = torch.empty(len(rows), dtype=torch.long)
    _run("span_counts", rows, ids, counts)
    return counts


def span_pack(rows: SpanRows, ids: Tensor, begins: Tensor, counts: Tensor, sources: Tensor, weights: Tensor) -> Tensor:
    """Write the edges that `span_counts` counted, by id, into sources (int32) and weights, those of a row from its
    place in `begins` on. Returns Float64[Tensor, "rows"], the sum of a row's other edges.

    Raises ValueError where there is no room for them.
    """
    lost = torch.empty(len(rows), dtype=torch.float64)
    _run("span_pack", rows, ids, begins, counts, sources, weights, lost)
    return lost


def span_totals(rows: SpanRows, counted: Tensor) -> Tensor:
    """Float64[Tensor, "rows"]: the sum of the sizes of edges from sources that count, Bool[Tensor, "n_sources"]."""
    totals = torch.empty(len(rows), dtype=torch.float64)
    _run("span_totals", rows, counted, totals)
    return totals


def span_flow(rows: SpanRows, targets: Tensor, scale: Tensor, total: Tensor) -> None:
    """For one row r after the other: total[source] += total[targets[r]] * scale[r] * |edge|, in place.

    targets Int64 and scale Float64[Tensor, "rows"], total Float64[Tensor, "n_nodes"], whose first are the sources.
    """
    _run("span_flow", rows, targets, scale, total)


def csr_flow(
    rows: Tensor,
    targets: Tensor,
    indptr: Tensor,
    sources: Tensor,
    scale: Tensor,
    weights: Tensor,
    total: Tensor,
    *,
    sizes: bool,
    runs: Runs | None = None,
) -> None:
    """The same of rows of a CSR (indptr, sources int32, weights), in the order of `rows`: row rows[r] leads into
    targets[r]. Without `sizes`, weights count with their signs. `runs`: those of `sources`, which are then not read.

    Raises ValueError for ids that are no nodes, rows that there are not, and a CSR that contradicts itself.
    """
    _run("csr_flow", rows, targets, indptr, sources, runs, scale, weights, sizes, total)


class Runs(NamedTuple):
    """Runs of successive numbers."""

    first: Tensor
    """Int32[Tensor, "runs"]"""
    length: Tensor
    """Int32[Tensor, "runs"]"""


def csr_runs(sources: Tensor) -> Runs | None:
    """Those in Int32[Tensor, "edges"]. None where they would take as many numbers as `sources` itself, or more."""
    room = max(0, (len(sources) - 1) // 2)
    first, length = torch.empty(room, dtype=torch.int32), torch.empty(room, dtype=torch.int32)
    n = _run("csr_runs", sources, first, length)
    return None if n < 0 or 2 * n >= len(sources) else Runs(first[:n].clone(), length[:n].clone())


class RowSums(NamedTuple):
    """What the edges of each row of a CSR come to."""

    weights: Tensor
    """Float64[Tensor, "rows"]"""
    sizes: Tensor
    """Float64[Tensor, "rows"]: of their absolute values"""
    counted: Tensor
    """Float64[Tensor, "masks rows"]: of those from nodes that count, by each mask"""


def csr_sums(indptr: Tensor, sources: Tensor, weights: Tensor, counted: Tensor, runs: Runs | None = None) -> RowSums:
    """counted: Bool[Tensor, "masks n_nodes"]; runs: as of `csr_flow`. Raises ValueError for sources that are no
    nodes."""
    n = len(indptr) - 1
    sums = RowSums(*(torch.empty(*shape, n, dtype=torch.float64) for shape in ((), (), (len(counted),))))
    _run("csr_sums", indptr, sources, runs, weights, counted, *sums)
    return sums


def _run(op: str, *arguments: SpanRows | Runs | Tensor | int | None) -> Any:
    if dispatch.forced() == "reference":
        return getattr(reference, op)(*arguments)
    return getattr(_C, op)(*(_lent(one) for one in arguments))


def _lent(one: SpanRows | Runs | Tensor | int | None) -> Any:
    if isinstance(one, SpanRows):
        return one.views()
    if isinstance(one, Runs):
        return [view(t) for t in one]
    return view(one) if isinstance(one, Tensor) else one
