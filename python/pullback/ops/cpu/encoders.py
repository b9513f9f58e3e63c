"""Exact sparse encoders on a CPU at the price of a cheap product.

The product x W^T is made in blocks that stay in the cache, in bfloat16 where the CPU multiplies it fast, else in
float32; where it has AMX, in tiles that are screened before they are stored. The product's error is bounded
(docs/CERTIFIED_SCREEN.md); what the bound cannot exclude is evaluated again in float64. No row whose candidates
overflow, or that holds NaN or infinity, is guessed: it is computed whole in float64.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..screen import has_amx, makes_tiles, multiplies_bf16
from ..sparse import SparseActivations
from . import screen, topk_select
from .pages import on_huge_pages

# Rows and columns of a block of the product: what the GEMM is fast at, and what stays in the cache for the kernel that
# reads it. Wide blocks settle sooner what cannot matter; float32 gains more from a GEMM that stays in the second cache.
# CPUs that have AMX also have larger caches and a slower memory, where wider blocks of float32 save a tenth.
BLOCKS = {
    "bfloat16": (256, 24576),
    "float32": (1024, 512),
    "float32 beside AMX": (1024, 4096),
    "tiles": (2048, 2**30),  # they have blocks of their own
}
# Blocks of few columns are made of more rows, up to so many entries: every block costs some calls.
SMALL_BLOCK = 2**20
# Weights without a shadow are rounded so many at a time, which are still in the cache when they are multiplied.
ROUNDED_AT_ONCE = 10 * 2**20
# Rows of x, columns and rows of a panel of the tiles' product.
PANEL = 32
# Rows whose candidates are held together, so that a row of W is fetched once for all that need it.
GROUP = 2048
# Without a shadow the weights are rounded block by block for every group; for fewer rows that does not pay.
FEWEST_TO_ROUND = {"bfloat16": 64, "tiles": 8}
# Where oneDNN is told, behind torch's back, that it may round the factors of float32 products.
FPMATH = "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"
# Below this the kernel has no room to take in a tile of features.
MIN_CAPACITY = 128
# What a product lost to the rounding of its result, of itself: half a unit, and something for the roundings to float32.
IN_BFLOAT16 = 2.0**-8 + 2.0**-16
IN_FLOAT32 = 2.0**-22
# Pre-activations computed at a time for rows that the bound does not settle.
WHOLE = 2**23


class _Kept(threading.local):
    """Scratch a thread keeps between calls: fresh pages cost more than the work done in them."""

    def __init__(self) -> None:
        self.buffers: dict[str, Tensor] = {}

    def take(self, name: str, dtype: torch.dtype, *shape: int) -> Tensor:
        size = math.prod(shape)
        if name not in self.buffers or self.buffers[name].numel() < size:
            with torch.inference_mode(False):  # a tensor made under inference mode could not be written outside it
                self.buffers[name] = on_huge_pages(torch.empty(size, dtype=dtype, device="cpu"))
        return self.buffers[name][:size].view(shape)


_kept = _Kept()


class Factor(NamedTuple):
    """Rows of x or W as they are multiplied, with upper bounds of their norms and of what rounding took from them."""

    rows: Tensor
    norms: Tensor
    rests: Tensor | None

    def __getitem__(self, part: slice) -> Factor:  # type: ignore[override]
        return Factor(self.rows[part], self.norms[part], None if self.rests is None else self.rests[part])


def _rounded(rows: Tensor, name: str) -> Factor:
    """Good until the next of the same name."""
    rounded = _kept.take(f"{name} in bfloat16", torch.bfloat16, *rows.shape)
    norms, rests = (_kept.take(f"{name}, {what}", torch.float32, len(rows)) for what in ("norms", "rests"))
    screen.shadow_rows(rows, rounded, norms, rests)
    return Factor(rounded, norms, rests)


def _unrounded(rows: Tensor) -> Factor:
    norms = screen.norm_rows(rows)
    return Factor(rows, norms, None if _multiplies_in_full() else norms * 2.0**-7)


def _multiplies_in_full() -> bool:
    """Whether torch takes float32 factors as they are: in the lower precisions it may round them to bfloat16."""
    if any(os.environ.get(name, "STRICT").upper() not in ("", "STRICT") for name in FPMATH):
        return False
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # it was set by way of torch's newer, per-backend names
        return False


class ScreenCounts(NamedTuple):
    """What the screen did so far in this process."""

    rows: int
    """rows encoded"""
    evaluated: int
    """pre-activations evaluated again in float64"""
    unsettled: int
    """rows that the bound did not settle: computed whole in float64"""


_counts = ScreenCounts(0, 0, 0)


def _count(rows: int = 0, evaluated: Tensor | None = None, unsettled: int = 0) -> None:
    global _counts
    found = 0 if evaluated is None else int(evaluated.clamp(min=0).sum())
    _counts = ScreenCounts(_counts.rows + rows, _counts.evaluated + found, _counts.unsettled + unsettled)


def screen_counts() -> ScreenCounts:
    """How many rows the exact encoders took on the CPU so far, and how many of them the error bound did not settle."""
    return _counts


def topk_encode(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, relu: bool, shadow: Factor | None = None
) -> tuple[Tensor, Tensor]:
    """The exact top-k of x W_enc^T + b_enc: values Float32[Tensor, "n k"], indices Int32[Tensor, "n k"].

    shadow: W_enc in bfloat16, where it is at hand.
    """
    n, F = len(x), len(W_enc)
    values, indices = x.new_empty(n, k), x.new_empty(n, k, dtype=torch.int32)
    for rows, candidates in _sifted(x, W_enc, b_enc, 16 * k + 512, k=k, shadow=shadow):
        screen.settle_topk(x[rows], W_enc, b_enc, candidates, values[rows], indices[rows], relu)
        _count(evaluated=candidates.counts)
        for some in _unsettled(candidates, F):
            h = screen.evaluate_rows(x[rows][some], W_enc, b_enc)
            values[rows][some], indices[rows][some] = topk_select(h, k, relu)
    return values, indices


def threshold_encode(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, theta: Tensor, shadow: Factor | None = None
) -> SparseActivations:
    """What of x W_enc^T + b_enc is above theta, Float32[Tensor, "F"], or NaN, and not zero: exactly, in CSR form."""
    entries = _Entries(x)
    for rows, candidates in _sifted(x, W_enc, b_enc, 2048, theta=theta, shadow=shadow):
        _settle_above(entries, x[rows], W_enc, b_enc, theta, candidates, rows.start)
        for some in _unsettled(candidates, len(W_enc)):
            h = screen.evaluate_rows(x[rows][some], W_enc, b_enc)
            row, ids = (((h > theta) | h.isnan()) & (h != 0)).nonzero(as_tuple=True)
            entries.add(some[row] + rows.start, ids.int(), h[row, ids])
    return entries.stacked(len(x), len(W_enc))


def batch_candidates(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, shadow: Factor | None = None
) -> SparseActivations:
    """The positive pre-activations that may be among the k n largest of x W_enc^T + b_enc, exact, in CSR form.

    Every row first gives what may be among its own 2 k largest. The k n-th largest of their lower bounds is a lower
    bound for the batch; a row whose own bound is higher may hold more than it gave, and is asked again.
    """
    n, F = len(x), len(W_enc)
    if n == 0:
        return SparseActivations.stacked([], F, x)
    groups = []
    for rows, candidates in _sifted(x, W_enc, b_enc, 32 * k + 512, k=min(2 * k, F), shadow=shadow):
        width = max(int(candidates.counts.max()), MIN_CAPACITY)
        held = (t[:, :width].clone() if t.ndim == 2 else t.clone() for t in candidates)
        groups.append((rows, screen.Candidates(*held)))
    lows = torch.cat([held.lows[_given(held)] for _, held in groups])
    lows = lows[lows > 0]
    bound = float(lows.topk(k * n, sorted=False).values.min()) if len(lows) >= k * n else 0.0
    theta = x.new_full((F,), bound).nextafter(x.new_zeros(())) if bound > 0 else x.new_zeros(F)
    entries, again = _Entries(x), []
    for rows, held in groups:
        asked_again = (held.counts < 0) | (held.bounds > bound)
        again.append(asked_again.nonzero().flatten() + rows.start)
        reach = _given(held) & (held.highs >= bound)
        order = (~reach).to(torch.int8).argsort(dim=1, stable=True)
        ids, lows, highs = (t.gather(1, order) for t in held[:3])
        counts = torch.where(asked_again, -1, reach.sum(1)).int()
        some = held._replace(ids=ids, lows=lows, highs=highs, counts=counts)
        _settle_above(entries, x[rows], W_enc, b_enc, theta, some, rows.start)
    rows = torch.cat(again)
    if len(rows):
        more = threshold_encode(x[rows], W_enc, b_enc, theta, shadow)
        entries.add(rows[more.rows()], more.indices, more.values)
    return entries.stacked(n, F)


class _Entries:
    """Entries of a sparse matrix in the making: row by row ascending in id, rows in any order."""

    def __init__(self, like: Tensor) -> None:
        none = like.new_zeros(0)
        self._parts = [(none.long(), none.int(), none)]

    def add(self, rows: Tensor, ids: Tensor, values: Tensor) -> None:
        self._parts.append((rows, ids, values))

    def stacked(self, n: int, F: int) -> SparseActivations:
        rows, ids, values = (torch.cat(part) for part in zip(*self._parts, strict=True))
        order = rows.argsort(stable=True)
        indptr = torch.nn.functional.pad(rows.bincount(minlength=n).cumsum(0), (1, 0))
        return SparseActivations(indptr, ids[order], values[order], F)


def _settle_above(
    entries: _Entries,
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    theta: Tensor,
    candidates: screen.Candidates,
    first_row: int,
) -> None:
    """Adds the candidates that are above theta; leaves the rows that are not settled alone."""
    _count(evaluated=candidates.counts)
    screen.settle_threshold(x, W_enc, b_enc, theta, candidates)
    row, slot = _given(candidates).nonzero(as_tuple=True)
    entries.add(row + first_row, candidates.ids[row, slot], candidates.lows[row, slot])


def _given(candidates: screen.Candidates) -> Tensor:
    """Bool[Tensor, "rows capacity"]: the slots that hold a candidate."""
    return torch.arange(candidates.ids.shape[1], device="cpu") < candidates.counts[:, None]


def _sifted(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    capacity: int,
    k: int = 0,
    theta: Tensor | None = None,
    shadow: Factor | None = None,
) -> Iterator[tuple[slice, screen.Candidates]]:
    """(rows, what in them may be among the k largest or above theta), a group of rows at a time.

    The candidates are good until the next group is asked for.
    """
    (n, d), F = x.shape, len(W_enc)
    rounded = "tiles" if makes_tiles() else "bfloat16"
    in_bf16 = multiplies_bf16() and (shadow is not None or n >= FEWEST_TO_ROUND[rounded])
    in_tiles = in_bf16 and makes_tiles()
    weights = shadow if in_bf16 else _unrounded(W_enc)
    height, width = BLOCKS[rounded if in_bf16 else "float32 beside AMX" if has_amx() else "float32"]
    if weights is None:
        width = min(width, max(512, ROUNDED_AT_ONCE // max(d, 1) // 512 * 512))
    height = max(height, SMALL_BLOCK // min(width, F))
    roundings = (d + 4) * 2.0**-24
    gamma = roundings / (1 - roundings) + d * 2.0**-50
    for start in range(0, n, GROUP):
        rows = slice(start, min(start + GROUP, n))
        inputs = _rounded(x[rows], "inputs") if in_bf16 else _unrounded(x[rows])
        candidates = _no_candidates(len(inputs.rows), min(capacity, F) + MIN_CAPACITY, 4 * k + 64)
        panels = _packed(inputs.rows) if in_tiles else None
        for first in range(0, F, width):
            block = slice(first, min(first + width, F))
            factor = _rounded(W_enc[block], "weights") if weights is None else weights[block]
            sought = _Sought(first, b_enc[block], k, None if theta is None else theta[block], gamma)
            if panels is not None:
                _screen_tiles(panels, inputs, factor, sought, candidates)
            else:
                _screen_stored(height, inputs, factor, sought, candidates)
        yield rows, candidates


class _Sought(NamedTuple):
    """What is looked for in a block of features: the k largest pre-activations, or those above theta."""

    first: int
    bias: Tensor
    k: int
    theta: Tensor | None
    gamma: float


def _packed(rows: Tensor) -> Tensor:
    """Good until the next."""
    n, d = (-(-size // PANEL) for size in rows.shape)
    panels = _kept.take("panels", torch.bfloat16, n, d, 2, PANEL // 2, PANEL // 2, 2)
    screen.pack_tiles(rows, panels)
    return panels


def _screen_tiles(
    panels: Tensor, inputs: Factor, factor: Factor, sought: _Sought, candidates: screen.Candidates
) -> None:
    assert factor.rests is not None, "tiles multiply what was rounded"
    assert inputs.rests is not None
    first, bias, k, theta, gamma = sought
    errors = factor.norms, factor.rests, inputs.norms, inputs.rests, gamma, IN_FLOAT32
    screen.screen_product(panels, factor.rows, first, bias, *errors, k, theta, candidates)


def _screen_stored(height: int, inputs: Factor, factor: Factor, sought: _Sought, candidates: screen.Candidates) -> None:
    first, bias, k, theta, gamma = sought
    dtype = factor.rows.dtype
    rho = IN_BFLOAT16 if dtype == torch.bfloat16 else IN_FLOAT32
    for top in range(0, len(inputs.rows), height):
        part = slice(top, min(top + height, len(inputs.rows)))
        left = inputs[part]
        y = _kept.take(f"product {dtype}", dtype, len(left.rows), len(factor.rows))
        torch.mm(left.rows, factor.rows.T, out=y)
        errors = factor.norms, factor.rests, left.norms, left.rests, gamma, rho
        some = screen.Candidates(*(t[part] for t in candidates))
        screen.screen_block(y, first, bias, *errors, k, theta, some)


def _no_candidates(n: int, capacity: int, limit: int) -> screen.Candidates:
    ids = _kept.take("ids", torch.int32, n, capacity)
    lows, highs = (_kept.take(name, torch.float32, n, capacity) for name in ("lows", "highs"))
    counts, limits = ids.new_zeros(n), ids.new_full((n,), limit)
    return screen.Candidates(ids, lows, highs, counts, lows.new_full((n,), -math.inf), limits)


def _unsettled(candidates: screen.Candidates, F: int) -> tuple[Tensor, ...]:
    """The rows of the group that have to be computed whole, in portions that fit in memory."""
    lost = (candidates.counts < 0).nonzero().flatten()
    _count(len(candidates.counts), unsettled=len(lost))
    return lost.split(max(1, WHOLE // F)) if len(lost) else ()
