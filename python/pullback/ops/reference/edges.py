"""Rows of edges, over spans of sources or in CSR, in plain torch: results are written into the last arguments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pullback.ops.edges import SpanRows


def each_span(rows: SpanRows) -> Iterator[tuple[int, int, int, Tensor]]:
    """Row, column, first source and values of every span of every row."""
    for row, (offset, shape) in enumerate(zip(rows.offsets.tolist(), rows.shape_of.tolist(), strict=True)):
        begin, end = rows.shapes.span_ptr[shape : shape + 2].tolist()
        for column, source, length in rows.shapes.spans[begin:end].tolist():
            yield row, column, source, rows.values[offset : offset + length]
            offset += length


def take_spans(block: Tensor, at: Tensor, rows: SpanRows, n_sources: int) -> None:  # noqa: ARG001
    for row, column, _, values in each_span(rows):
        values.copy_(block[at[row], column : column + len(values)])


def span_dense(rows: SpanRows, out: Tensor) -> None:
    for row, _, source, values in each_span(rows):
        out[row, source : source + len(values)] = values


def dense(rows: SpanRows) -> Tensor:
    out = rows.values.new_zeros(len(rows), rows.n_sources)
    span_dense(rows, out)
    return out


def span_counts(rows: SpanRows, ids: Tensor, counts: Tensor) -> None:
    counts.copy_(((dense(rows) != 0) & (ids >= 0)).sum(1))


def span_pack(
    rows: SpanRows, ids: Tensor, begins: Tensor, counts: Tensor, sources: Tensor, weights: Tensor, lost: Tensor
) -> None:
    edges = dense(rows)
    lost.copy_(edges.double()[:, ids < 0].sum(1))
    for row, begin, count in zip(edges, begins.tolist(), counts.tolist(), strict=True):
        kept = ((row != 0) & (ids >= 0)).nonzero()[:, 0]
        sources[begin : begin + count] = ids[kept]
        weights[begin : begin + count] = row[kept]


def span_totals(rows: SpanRows, counted: Tensor, totals: Tensor) -> None:
    totals.copy_(dense(rows).double().abs()[:, counted].sum(1))


def span_flow(rows: SpanRows, targets: Tensor, scale: Tensor, total: Tensor) -> None:
    for target, factor, row in zip(targets, scale, dense(rows).double().abs(), strict=True):
        total[: rows.n_sources] += total[target] * factor * row


def csr_flow(
    rows: Tensor,
    targets: Tensor,
    indptr: Tensor,
    sources: Tensor,
    _: tuple[Tensor, Tensor] | None,
    scale: Tensor,
    weights: Tensor,
    sizes: bool,
    total: Tensor,
) -> None:
    counted = weights.abs() if sizes else weights
    for row, target, factor in zip(rows, targets, scale, strict=True):
        own = slice(*indptr[row : row + 2].tolist())
        total.index_add_(0, sources[own], total[target] * factor * counted[own].double())


def csr_runs(sources: Tensor, first: Tensor, length: Tensor) -> int:
    starts = torch.cat([torch.tensor([True])[: len(sources)], sources.diff() != 1]).nonzero()[:, 0]
    n = len(starts)
    if n > len(first):
        return -1
    first[:n] = sources[starts]
    length[:n] = torch.cat([starts, starts.new_tensor([len(sources)])]).diff()
    return n


def csr_sums(
    indptr: Tensor,
    sources: Tensor,
    _: tuple[Tensor, Tensor] | None,
    weights: Tensor,
    counted: Tensor,
    sums: Tensor,
    sizes: Tensor,
    totals: Tensor,
) -> None:
    def write_sums(values: Tensor, out: Tensor) -> None:
        out.copy_(torch.segment_reduce(values, "sum", offsets=indptr, unsafe=True))

    write_sums(weights.double(), sums)
    write_sums(weights.double().abs(), sizes)
    for mask, out in zip(counted, totals, strict=True):
        write_sums(weights.double().abs() * mask[sources.long()], out)
