"""Exact sparse encoders on a CPU at the price of a cheap product.

The product x W^T is made in blocks that stay in the cache, in bfloat16 where the CPU multiplies it fast, else in
float32. Its error is bounded (docs/CERTIFIED_SCREEN.md); what the bound cannot exclude is evaluated again in float64.
No row whose candidates overflow, or that holds NaN or infinity, is guessed: it is computed whole in float64.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import _cpu
from .screen import Screen, multiplies_bf16
from .sparse import SparseActivations

# A block of the product: it stays in a core's L2 for the kernel that reads it.
ROWS, COLUMNS = 512, 4096
# Rows whose candidates are held together, so that a row of W is fetched once for all that need it.
GROUP = 2048
# Without a shadow the weights are rounded block by block for every group; for fewer rows that does not pay.
FEWEST_TO_ROUND = 64
# Pre-activations computed whole at a time, for rows that the bound does not settle.
WHOLE = 2**23


class _Kept(threading.local):
    """Scratch a thread keeps between calls: fresh pages cost more than the work done in them."""

    def __init__(self) -> None:
        self.buffers: dict[str, Tensor] = {}

    def take(self, name: str, dtype: torch.dtype, *shape: int) -> Tensor:
        size = math.prod(shape)
        if name not in self.buffers or self.buffers[name].numel() < size:
            with torch.inference_mode(False):  # a tensor made under inference mode could not be written outside it
                self.buffers[name] = torch.empty(size, dtype=dtype)
        return self.buffers[name][:size].view(shape)


_kept = _Kept()


class _Factor(NamedTuple):
    """Rows of x or W as they are multiplied, with upper bounds of their norms and of what rounding took from them."""

    rows: Tensor
    norms: Tensor
    rests: Tensor | None

    def __getitem__(self, part: slice) -> _Factor:  # type: ignore[override]
        return _Factor(self.rows[part], self.norms[part], None if self.rests is None else self.rests[part])


def _rounded(rows: Tensor) -> _Factor:
    shadow = Screen(rows)
    return _Factor(shadow.W16, shadow.norms, shadow.rests)


def _unrounded(rows: Tensor) -> _Factor:
    norms = _cpu.norm_rows(rows)
    # In the lower precisions torch may itself round float32 factors to bfloat16.
    exact = torch.get_float32_matmul_precision() == "highest"
    return _Factor(rows, norms, None if exact else norms * 2.0**-8)


def topk_encode(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, relu: bool, screen: Screen | None = None
) -> tuple[Tensor, Tensor]:
    """The exact top-k of x W_enc^T + b_enc: values Float32[Tensor, "n k"], indices Int32[Tensor, "n k"]."""
    n, F = len(x), len(W_enc)
    values, indices = torch.empty(n, k), torch.empty(n, k, dtype=torch.int32)
    for rows, candidates in _sifted(x, W_enc, b_enc, screen, 16 * k + 512, k=k):
        _cpu.settle_topk(x[rows], W_enc, b_enc, candidates, values[rows], indices[rows], relu)
        for some in _unsettled(candidates, screen, F):
            h = _whole(x[rows][some], W_enc, b_enc)
            values[rows][some], indices[rows][some] = _cpu.topk_select(h, k, relu)
    return values, indices


def threshold_encode(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, theta: Tensor, screen: Screen | None = None
) -> SparseActivations:
    """What of x W_enc^T + b_enc is above theta, Float32[Tensor, "F"], or NaN: exactly, in CSR form."""
    n, F = len(x), len(W_enc)
    entries: list[tuple[Tensor, Tensor, Tensor]] = []
    for rows, candidates in _sifted(x, W_enc, b_enc, screen, 2048, theta=theta):
        _cpu.settle_threshold(x[rows], W_enc, b_enc, theta, candidates)
        row, slot = (torch.arange(candidates.ids.shape[1]) < candidates.counts[:, None]).nonzero(as_tuple=True)
        entries.append((row + rows.start, candidates.ids[row, slot], candidates.lows[row, slot]))
        for some in _unsettled(candidates, screen, F):
            h = _whole(x[rows][some], W_enc, b_enc)
            row, ids = (~(h <= theta)).nonzero(as_tuple=True)
            entries.append((some[row] + rows.start, ids.int(), h[row, ids]))
    row, ids, h = (torch.cat(parts) for parts in zip(*entries, strict=True))
    order = row.argsort(stable=True)
    indptr = torch.nn.functional.pad(row.bincount(minlength=n).cumsum(0), (1, 0))
    return SparseActivations(indptr, ids[order], h[order], F)


def _sifted(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    screen: Screen | None,
    capacity: int,
    k: int = 0,
    theta: Tensor | None = None,
) -> Iterator[tuple[slice, _cpu.Candidates]]:
    """(rows, what in them may be among the k largest or above theta), a group of rows at a time.

    The candidates are good until the next group is asked for.
    """
    (n, d), F = x.shape, len(W_enc)
    in_bf16 = multiplies_bf16() and (screen is not None or n >= FEWEST_TO_ROUND)
    if not in_bf16:
        weights = _unrounded(W_enc)
    elif screen is not None:
        weights = _Factor(screen.W16, screen.norms, screen.rests)
    else:
        weights = None
    # A rounding to the nearest bfloat16 takes half of this, one towards zero all of it.
    rho = 2.0**-8 if in_bf16 else 2.0**-22
    roundings = (d + 4) * 2.0**-24
    gamma = roundings / (1 - roundings) + d * 2.0**-50
    for start in range(0, n, GROUP):
        rows = slice(start, min(start + GROUP, n))
        inputs = _rounded(x[rows]) if in_bf16 else _unrounded(x[rows])
        candidates = _no_candidates(len(inputs.rows), min(capacity, F) + 128, 4 * k + 64)
        for first in range(0, F, COLUMNS):
            block = slice(first, min(first + COLUMNS, F))
            factor = _rounded(W_enc[block]) if weights is None else weights[block]
            for top in range(0, len(inputs.rows), ROWS):
                part = slice(top, min(top + ROWS, len(inputs.rows)))
                left = inputs[part]
                y = _kept.take(f"product {factor.rows.dtype}", factor.rows.dtype, len(left.rows), len(factor.rows))
                torch.mm(left.rows, factor.rows.T, out=y)
                _cpu.screen_block(
                    y,
                    first,
                    b_enc[block],
                    factor.norms,
                    factor.rests,
                    left.norms,
                    left.rests,
                    gamma,
                    rho,
                    k,
                    None if theta is None else theta[block],
                    _cpu.Candidates(*(t[part] for t in candidates)),
                )
        yield rows, candidates


def _no_candidates(n: int, capacity: int, limit: int) -> _cpu.Candidates:
    ids = _kept.take("ids", torch.int32, n, capacity)
    lows, highs = (_kept.take(name, torch.float32, n, capacity) for name in ("lows", "highs"))
    counts, limits = torch.zeros(n, dtype=torch.int32), torch.full((n,), limit, dtype=torch.int32)
    return _cpu.Candidates(ids, lows, highs, counts, torch.full((n,), -math.inf), limits)


def _unsettled(candidates: _cpu.Candidates, screen: Screen | None, F: int) -> tuple[Tensor, ...]:
    """The rows of the group that have to be computed whole, in portions that fit in memory."""
    lost = (candidates.counts < 0).nonzero().flatten()
    if screen is not None:
        screen.count(len(candidates.counts), int(candidates.counts.clamp(min=0).sum()), len(lost))
    return lost.split(max(1, WHOLE // F)) if len(lost) else ()


def _whole(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
    """x W_enc^T + b_enc accumulated in float64 and rounded once."""
    h = torch.empty(len(x), len(W_enc))
    inputs = x.double()
    for first in range(0, len(W_enc), COLUMNS):
        block = slice(first, first + COLUMNS)
        h[:, block] = torch.addmm(b_enc[block].double(), inputs, W_enc[block].double().T)
    return h
