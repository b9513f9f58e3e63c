"""Rows of edges over spans of sources, and in CSR: against dense rows and the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pullback import ops
from pullback.ops.edges import (
    Runs,
    SpanRows,
    SpanShapes,
    csr_flow,
    csr_runs,
    csr_sums,
    empty_rows,
    from_dense,
    span_counts,
    span_flow,
    span_pack,
    span_totals,
    take_spans,
)

N_SOURCES, N_COLUMNS = 40, 60
SEEDS = st.integers(0, 2**16)
DTYPES = st.sampled_from([torch.float32, torch.float64])


def made(seed: int, n: int, dtype: torch.dtype) -> tuple[SpanRows, torch.Tensor]:
    """Rows of a few shapes, taken from a block; and the same, dense."""
    generator = torch.Generator().manual_seed(seed)

    def some(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    shapes = []
    for _ in range(3):
        cuts = sorted({some(0, N_SOURCES + 1) for _ in range(6)})
        pairs = list(zip(cuts[::2], cuts[1::2], strict=False))
        shapes.append([(some(0, N_COLUMNS - (b - a) + 1), a, b - a) for a, b in pairs])
    shape_of = torch.randint(0, 3, (n,), generator=generator)
    block = torch.randn(n + 2, N_COLUMNS, generator=generator, dtype=dtype)
    block *= torch.rand(n + 2, N_COLUMNS, generator=generator) < (1.0, 0.7)[some(0, 2)]  # some edges are 0
    at = torch.randint(0, n + 2, (n,), generator=generator)
    rows = empty_rows(block, shape_of, SpanShapes.of(shapes), N_SOURCES)
    take_spans(block, at, rows)
    dense = torch.zeros(n, N_SOURCES, dtype=dtype)
    for r in range(n):
        for column, source, length in shapes[int(shape_of[r])]:
            dense[r, source : source + length] = block[at[r], column : column + length]
    return rows, dense


def every_run(sources: torch.Tensor) -> Runs:
    """Also where they take more room than the sources, and across the ends of rows."""
    starts = torch.cat([torch.ones(min(1, len(sources)), dtype=torch.bool), sources.diff() != 1]).nonzero()[:, 0]
    length = torch.cat([starts, starts.new_tensor([len(sources)])]).diff()
    return Runs(sources[starts], length.int())


def new_ids(seed: int) -> torch.Tensor:
    keep = torch.rand(N_SOURCES, generator=torch.Generator().manual_seed(seed)) < (1.0, 0.95, 0.6)[seed % 3]
    return torch.where(keep, torch.cumsum(keep, 0) - 1, -1).int()


@pytest.mark.parametrize("backend", ["auto", "reference"])
@given(seed=SEEDS, n=st.integers(0, 9), dtype=DTYPES)
def test_rows_list_what_stood_at_their_spans(backend: str, seed: int, n: int, dtype: torch.dtype) -> None:
    with ops.use_backend(backend):
        rows, dense = made(seed, n, dtype)
        assert torch.equal(rows.dense(), dense)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(rows[order].dense(), dense[order])
        assert torch.equal(from_dense(dense).dense(), dense)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@given(seed=SEEDS, n=st.integers(0, 9), dtype=DTYPES)
def test_edges_of_chosen_sources_are_packed_and_the_rest_is_summed(
    backend: str, seed: int, n: int, dtype: torch.dtype
) -> None:
    rows, dense = made(seed, n, dtype)
    ids = new_ids(seed)
    kept = (dense != 0) & (ids >= 0)
    with ops.use_backend(backend):
        counts = span_counts(rows, ids)
        assert torch.equal(counts, kept.sum(1))
        room = 3  # before the first row, which stays as it is
        sources = torch.full((room + int(counts.sum()),), -7, dtype=torch.int32)
        weights = torch.full((len(sources),), -7.0, dtype=dtype)
        lost = span_pack(rows, ids, room + counts.cumsum(0) - counts, counts, sources, weights)
    assert torch.equal(sources[room:], ids.expand(n, -1)[kept])
    assert torch.equal(weights[room:], dense[kept])
    assert sources[:room].tolist() == [-7] * room
    torch.testing.assert_close(lost, dense.double()[:, ids < 0].sum(1))


def test_known_counts_are_believed_where_all_sources_stay() -> None:
    rows, _ = made(0, 4, torch.float32)
    told = replace(rows, nonzero=torch.tensor([1, 2, 3, 4]))
    every = torch.arange(N_SOURCES, dtype=torch.int32)
    assert span_counts(told[[2, 0]], every).tolist() == [3, 1]
    assert torch.equal(span_counts(told, new_ids(2)), span_counts(rows, new_ids(2)))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@given(seed=SEEDS, n=st.integers(0, 9), dtype=DTYPES)
def test_totals_and_flow(backend: str, seed: int, n: int, dtype: torch.dtype) -> None:
    rows, dense = made(seed, n, dtype)
    generator = torch.Generator().manual_seed(seed)
    counted = torch.rand(N_SOURCES, generator=generator) < 0.5
    # Some targets are sources of rows before them.
    targets = torch.randint(0, N_SOURCES + 3, (n,), generator=generator)
    scale = torch.rand(n, generator=generator, dtype=torch.float64)
    total = torch.rand(N_SOURCES + 3, generator=generator, dtype=torch.float64)
    initial, expected = total.clone(), total.clone()
    for r in range(n):
        expected[:N_SOURCES] += expected[targets[r]].clone() * scale[r] * dense[r].double().abs()
    sources, weights = dense.nonzero()[:, 1].int(), dense[dense != 0]
    indptr = torch.cat([torch.zeros(1, dtype=torch.long), (dense != 0).sum(1).cumsum(0)])
    again = total.clone()
    # The rows of the CSR stand in another order than they are gone through.
    order = torch.randperm(n, generator=generator)
    with ops.use_backend(backend):
        torch.testing.assert_close(span_totals(rows, counted), dense.double().abs()[:, counted].sum(1))
        span_flow(rows, targets, scale, total)
        csr_flow(torch.arange(n), targets, indptr, sources, scale, weights, again, sizes=True)
        shuffled = initial.clone()
        csr_flow(order, targets[order], indptr, sources, scale[order], weights, shuffled, sizes=False)
        by_runs = [initial.clone(), initial.clone()]
        runs = every_run(sources)
        csr_flow(torch.arange(n), targets, indptr, sources, scale, weights, by_runs[0], sizes=True, runs=runs)
        csr_flow(order, targets[order], indptr, sources, scale[order], weights, by_runs[1], sizes=False, runs=runs)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(again, expected)
    torch.testing.assert_close(by_runs[0], expected)
    expected = initial.clone()
    for r in order:
        expected[:N_SOURCES] += expected[targets[r]].clone() * scale[r] * dense[r].double()
    torch.testing.assert_close(shuffled, expected)
    torch.testing.assert_close(by_runs[1], expected)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@given(lengths=st.lists(st.integers(1, 9), max_size=12), seed=SEEDS)
def test_runs_of_successive_sources(backend: str, lengths: list[int], seed: int) -> None:
    first = torch.randint(0, 50, (len(lengths),), generator=torch.Generator().manual_seed(seed)) * 20
    sources = torch.cat([torch.arange(a, a + n) for a, n in zip(first.tolist(), lengths, strict=True)] or [first]).int()
    with ops.use_backend(backend):
        runs = csr_runs(sources)
    if 2 * len(lengths) >= len(sources):
        assert runs is None, "they would take no less than the sources"
    else:
        assert runs is not None
        assert [part.tolist() for part in runs] == [first.tolist(), lengths]


@pytest.mark.parametrize("backend", ["auto", "reference"])
@given(seed=SEEDS, n=st.integers(0, 9), dtype=DTYPES)
def test_sums_of_rows_in_csr(backend: str, seed: int, n: int, dtype: torch.dtype) -> None:
    _, dense = made(seed, n, dtype)
    counted = torch.rand(2, N_SOURCES, generator=torch.Generator().manual_seed(seed)) < 0.5
    indptr = torch.cat([torch.zeros(1, dtype=torch.long), (dense != 0).sum(1).cumsum(0)])
    weights, sources = dense[dense != 0], dense.nonzero()[:, 1].int()
    with ops.use_backend(backend):
        found = [csr_sums(indptr, sources, weights, counted, runs) for runs in (None, every_run(sources))]
    expected = [dense.double().abs()[:, mask].sum(1) for mask in counted]
    for sums, sizes, totals in found:
        torch.testing.assert_close(sums, dense.double().sum(1))
        torch.testing.assert_close(sizes, dense.double().abs().sum(1))
        torch.testing.assert_close(totals, torch.stack(expected))


@pytest.mark.parametrize("n_masks", [0, 1, 2, 3])
def test_any_number_of_masks(isa: str, n_masks: int) -> None:  # noqa: ARG001
    _, dense = made(3, 6, torch.float64)
    counted = torch.rand(n_masks, N_SOURCES, generator=torch.Generator().manual_seed(5)) < 0.5
    indptr = torch.cat([torch.zeros(1, dtype=torch.long), (dense != 0).sum(1).cumsum(0)])
    weights, sources = dense[dense != 0], dense.nonzero()[:, 1].int()
    for runs in (None, every_run(sources)):
        sums, sizes, totals = csr_sums(indptr, sources, weights, counted, runs)
        torch.testing.assert_close(sums, dense.sum(1))
        torch.testing.assert_close(sizes, dense.abs().sum(1))
        torch.testing.assert_close(totals, counted.double() @ dense.abs().T)


def test_runs_that_are_not_those_of_the_edges_are_refused() -> None:
    indptr, sources, edges = torch.tensor([0, 2, 3]), torch.tensor([4, 5, 6]).int(), torch.ones(3)
    counted = torch.ones(1, 7, dtype=torch.bool)
    for first, length in (([4], [2]), ([4], [4]), ([5], [3]), ([-1], [3]), ([4, 4], [3, 0]), ([4, 6], [4, -1])):
        wrong = Runs(torch.tensor(first).int(), torch.tensor(length).int())
        with pytest.raises(ValueError, match="the runs are not those of 3 edges from 7 nodes"):
            csr_sums(indptr, sources, edges, counted, wrong)
        with pytest.raises(ValueError, match="the runs are not those of 3 edges from 7 nodes"):
            csr_flow(
                torch.arange(2),
                torch.tensor([0, 1]),
                indptr,
                sources,
                torch.ones(2).double(),
                edges,
                torch.ones(7).double(),
                sizes=True,
                runs=wrong,
            )


def test_nothing_outside_is_touched() -> None:
    rows, dense = made(0, 4, torch.float32)
    ids = new_ids(0)
    counts = span_counts(rows, ids)
    room = torch.zeros(int(counts.sum()), dtype=torch.int32), torch.zeros(int(counts.sum()))
    with pytest.raises(ValueError, match="no room for row 3"):
        span_pack(rows, ids, counts.cumsum(0) - counts + 1, counts, *room)
    with pytest.raises(ValueError, match="more edges than its count"):
        span_pack(rows, ids, counts.cumsum(0) - counts, (counts - 1).clamp(min=0), *room)
    with pytest.raises(ValueError, match="row 0 of shape .* 5 sources"):
        span_counts(rows, ids[:5])
    with pytest.raises(ValueError, match="no row of the block 9"):
        take_spans(dense, torch.full((4,), 9), rows)
    with pytest.raises(ValueError, match="3 columns"):
        take_spans(dense[:, :3].contiguous(), torch.zeros(4, dtype=torch.long), rows)
    with pytest.raises(ValueError, match="no node 99"):
        span_flow(rows, torch.full((4,), 99), torch.ones(4).double(), torch.ones(N_SOURCES).double())
    one, total, edge = torch.ones(1).double(), torch.ones(50).double(), dense[0, :1]
    with pytest.raises(ValueError, match="indptr must ascend from 0 to 1"):
        csr_flow(
            torch.tensor([0]), torch.tensor([0]), torch.tensor([0, 2]), ids[:1].abs(), one, edge, total, sizes=False
        )
    with pytest.raises(ValueError, match="feature id 60 at entry 0"):
        csr_flow(
            torch.tensor([0]),
            torch.tensor([0]),
            torch.tensor([0, 1]),
            torch.tensor([60]).int(),
            one,
            edge,
            total,
            sizes=False,
        )
    with pytest.raises(ValueError, match="feature id -1 at entry 0"):
        csr_sums(torch.tensor([0, 1]), torch.tensor([-1]).int(), edge, torch.ones(2, 9, dtype=torch.bool))
    with pytest.raises(ValueError, match="no row 1"):
        csr_flow(
            torch.tensor([1]), torch.tensor([0]), torch.tensor([0, 1]), ids[:1].abs(), one, edge, total, sizes=False
        )
