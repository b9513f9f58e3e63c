"""Work by tiles of CSR entries, without asking the device how many entries each row has."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def entry_tile(indptr_ptr, n_rows, nnz, tile, BLOCK: tl.constexpr):
    """Row, first entry and end of a tile of at most BLOCK entries of one row, and whether row pointers are damaged.

    Row p owns the tiles from indptr[p] // BLOCK + p on: enough for its entries whatever their number, at most one to
    spare, and the row of a tile follows by bisection. There are nnz // BLOCK + n_rows tiles in all.
    """
    low = tl.zeros((), tl.int32)
    high = low + n_rows - 1
    while low < high:
        middle = (low + high + 1) // 2
        if tl.load(indptr_ptr + middle) // BLOCK + middle <= tile:
            low = middle
        else:
            high = middle - 1
    first = tl.load(indptr_ptr + low)
    end = tl.load(indptr_ptr + low + 1)
    # Entries that no row holds are never written; that the pointers miss them then shows in all others.
    missed = (tl.load(indptr_ptr) != 0) | (tl.load(indptr_ptr + n_rows) != nnz)
    damaged = (first < 0) | (end > nnz) | (first > end) | missed
    start = first + (tile - first // BLOCK - low).to(tl.int64) * BLOCK
    # A damaged row keeps only entries that exist.
    return low, tl.maximum(start, 0), tl.minimum(end, nnz), damaged


def entry_tile_count(n_rows: int, nnz: int, block: int) -> int:
    """How many tiles cover any division of nnz entries into n_rows rows."""
    return nnz // block + n_rows
