"""Sweeps of one prompt after the other, a few targets at a time, compiled: of small models, whose weights stay in a
cache beside the gradients. What heads take of the targets' vectors is worked out for all of them at once before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pullback import _C
from pullback.attribution.linear.sweep import Source, Sweep
from pullback.attribution.linear.table import Table, inverse, table_of
from pullback.attribution.linear.taken import Vectors
from pullback.attribution.stack import Stack
from pullback.attribution.targets import Targets
from pullback.ops import dispatch
from pullback.ops.cpu.borrow import View, optional, view
from pullback.ops.edges import SpanRows, empty_rows
from pullback.ops.frozen import SHORT
from pullback.transcoders import Rows, in_memory

WEIGHTS = 1 << 16  # numbers in one matrix of an attention's weights, for them to stay in the second cache
GRADIENTS = 1 << 16  # and in a tile's gradients
FEWEST = 16  # targets of a tile, if neighbouring positions have as many


def fit_a_cache(weights: int, n_pos: int) -> bool:
    """Whether a matrix of so many weights and the gradients of so many positions stay in a cache together."""
    return weights <= WEIGHTS and n_pos <= SHORT


def suits(stack: Stack) -> bool:
    """Whether there are compiled kernels for all that a sweep meets, and whether they pay."""
    w, dtype = stack.layers[0].weights, stack.embed.dtype
    decoders = [stack.sets.decoder(src, i) for i in range(stack.n_layers) for src in stack.sets.sources(i)]
    return (
        dispatch.forced() in ("auto", "cpu")
        and stack.embed.device.type == "cpu"
        and dtype in (torch.float32, torch.float64)
        and stack.precision == dtype
        and all(rows.dtype == dtype for rows in decoders)
        and all(stack.skip(i) is None for i in range(stack.n_layers))
        and not (stack.at_attention or stack.zeroed)
        and fit_a_cache(w.W_O.numel(), stack.n_pos)
        and stack.writes_little(stack.n_pos)
    )


class Tiles(NamedTuple):
    """Some targets each, of one prompt and depth, at neighbouring positions: successive ones, in some order."""

    depth: Tensor  # (n_tiles), as all of these
    prompts: Tensor
    positions: Tensor  # the first ones, up to the last target's
    firsts: Tensor  # target
    counts: Tensor  # of targets

    def by_depth(self) -> Iterator[tuple[int, slice, slice]]:
        """Each depth, its tiles and their targets."""
        tile = target = 0
        depths, sizes = torch.unique_consecutive(self.depth, return_counts=True)
        for depth, size in zip(depths.tolist(), sizes.tolist(), strict=True):
            n = int(self.counts[tile : tile + size].sum())
            yield depth, slice(tile, tile + size), slice(target, target + n)
            tile, target = tile + size, target + n


def tiles_of(stack: Stack, depth: Tensor, prompt: Tensor, pos: Tensor) -> tuple[Tensor, Tiles]:
    """An order of targets, each of a depth, prompt and position (B), and their tiles in this order."""
    T, d = stack.n_pos, stack.embed.shape[2]
    runs = len(torch.unique(depth * stack.n_prompts + prompt))
    width = min(T, max(1, round(FEWEST * runs * T / len(pos))))  # of a cone, in positions
    group = (depth * stack.n_prompts + prompt) * T + pos // width
    order = torch.argsort(group, stable=True)
    group, pos = group[order], pos[order]
    _, run, sizes = torch.unique_consecutive(group, return_inverse=True, return_counts=True)
    place = torch.arange(len(run)) - (sizes.cumsum(0) - sizes)[run]
    most = (GRADIENTS // (d * (group % T + 1) * width)).clamp(min=FEWEST)
    _, tile, counts = torch.unique_consecutive(
        group * len(pos) + place // most, return_inverse=True, return_counts=True
    )
    firsts = counts.cumsum(0) - counts
    above = torch.zeros_like(firsts).scatter_reduce_(0, tile, pos + 1, "amax")
    first_targets = order[firsts]
    return order, Tiles(depth[first_targets], prompt[first_targets], above, firsts, counts)


def rows_prompt_by_prompt(stack: Stack, targets: Targets) -> tuple[SpanRows, Tensor]:
    """As `rows_side_by_side`, where that `suits`."""
    table, spans, Q = table_of(stack, targets), stack.spans, stack.n_prompts
    pos = targets.pos % stack.n_pos
    order, tiles = tiles_of(stack, table.depth, targets.pos // stack.n_pos, pos)

    kinds, kind = torch.unique(tiles.depth * (stack.n_pos + 1) + tiles.positions, return_inverse=True)
    lengths = spans.lengths(kinds % (stack.n_pos + 1), kinds // (stack.n_pos + 1))
    shapes = spans.shapes(lengths, torch.zeros_like(lengths))
    shape = (kind * Q + tiles.prompts).repeat_interleave(tiles.counts)
    rows = empty_rows(table.vectors, shape, shapes, max(layout.n_sources for layout in stack.layouts))
    nonzero = torch.empty(len(order), dtype=torch.long)
    of_tiles = lengths[kind, tiles.prompts]  # (n_tiles, S)
    to = (of_tiles.cumsum(1) - of_tiles).T.contiguous()
    begins, widths = rows.offsets[tiles.firsts], of_tiles.sum(1)

    placed = table.row[order], table.factor[order], pos[order]
    for depth, which, own in tiles.by_depth():
        row, factor, at = (t[own] for t in placed)
        some = Tiles(*(column[which] for column in tiles))
        about = (some.prompts, some.positions, some.firsts - own.start, some.counts, begins[which], widths[which])
        into = dict(zip(spans.names, to[:, which].contiguous(), strict=True))
        out = rows.values, nonzero[own]
        part = PromptByPrompt(stack, table, depth, about, (row - table.starts[depth], factor, at), out, into)
        Sweep(stack, part).run()
        part.run()
    return replace(rows, nonzero=nonzero)[inverse(order)], torch.zeros(len(order), dtype=table.vectors.dtype)


class PromptByPrompt:
    """`Gradients` of targets of one depth: what a sweep asks of them is noted, and done by `run`.

    Args:
        tiles: six columns, and
        placed: three, as `Descent` in csrc/descent.h has them.
        out: edges, of all rows, and how many of each target are not 0.
        to: where the edges from a source begin in the rows of each tile, (n_tiles).
    """

    def __init__(
        self,
        stack: Stack,
        table: Table,
        depth: int,
        tiles: tuple[Tensor, ...],
        placed: tuple[Tensor, Tensor, Tensor],
        out: tuple[Tensor, Tensor],
        to: Mapping[Source, Tensor],
    ) -> None:
        self.stack, self.depth, self.vectors, self.readers = stack, depth, table.of(depth), table.readers
        self.P, self.to, self.joined = stack.n_pos, to, False
        self.positions = float(tiles[1].double().mean())
        self.just_taken: Vectors | None = None
        self._lent: list[Tensor] = []
        about = [self._lend(column) for column in tiles]
        row, factor, pos = (self._lend(column) for column in placed)
        d = stack.embed.shape[2]
        values, nonzero = (self._lend(t) for t in out)
        self._descent = _C.Descent(about, row, factor, pos, values, nonzero, stack.n_prompts, d)

    def run(self) -> None:
        self._descent.run()

    def _lend(self, t: Tensor) -> View:
        """A view of a tensor that is kept for as long as there are steps that read it."""
        self._lent.append(t)
        return view(t)

    def waits(self, depth: int) -> bool:
        return depth == self.depth and not self.joined

    def stand(self, depth: int) -> None:  # noqa: ARG002
        heads = self.stack.heads[0]
        nothing = self.vectors[:, None][:, :0]
        self._spread(nothing, heads.spreading[:, :0], heads.read_scale[..., 0], self.vectors)

    def take(self, depth: int, i: int, *, standing: bool) -> None:  # noqa: ARG002
        heads = self.stack.heads[i]
        self.just_taken = Vectors(heads, self.vectors, self.readers, standing=standing)
        self._spread(self.just_taken.by_head, heads.spreading, heads.read_scale[..., 0], self.just_taken.standing)

    def _spread(self, taken: Tensor, mixing: Tensor, scale: Tensor, standing: Tensor | None) -> None:
        if standing is not None:
            self._lent.append(standing)
        self._descent.spread(self._lend(taken), self._lend(mixing), self._lend(scale), optional(standing), self.joined)
        self.joined = True

    def contract(self, source: Source, W_dec: Rows) -> None:
        acts, rows = in_memory(self.stack.active[source], W_dec)
        indptr, indices, values, W = (self._lend(t) for t in (acts.indptr, acts.indices, acts.values, rows))
        self._descent.contract(indptr, indices, values, W, self.stack.n_pos, self._lend(self.to[source]))

    def leaves(self, *sources: Source) -> None:
        leaves = [self._lend(self.stack.vectors(source)) for source in sources]
        self._descent.contract_leaves(leaves, [self._lend(self.to[source]) for source in sources])

    def own(self, source: Source, depth: int) -> None:  # noqa: ARG002
        u = self.stack.vectors(source)
        self._descent.contract_own(self._lend(self.vectors), self._lend(u), self._lend(self.to[source]))

    def through_heads(self, i: int) -> None:
        heads, taken = self.stack.heads[i], self.just_taken
        self.just_taken = None
        scale = heads.read_scale[..., 0]
        if taken is not None and taken.steps_by_pairs(heads, self.positions):
            self._spread(taken.pairs(heads), heads.two_steps(taken.heads), scale, None)
            return
        to_z, mixing, from_v = (self._lend(t) for t in (heads.from_output, heads.mixing, heads.from_v.contiguous()))
        self._descent.through_heads(to_z, mixing, self._lend(scale), from_v, heads.n_heads)

    def written(self, source: Source) -> None:
        for sources, written in self.stack.written_by(source, self.P):
            self._descent.contract_written(self._lend(written), sources.start, self._lend(self.to[source]))

    def lose(self, u: Tensor) -> None:  # noqa: ARG002
        raise AssertionError("PromptByPrompt: no positions are zeroed where this suits")

    def through_skip(self, i: int, W_skip: Tensor) -> Tensor:  # noqa: ARG002
        raise AssertionError("PromptByPrompt: there are no skip paths where this suits")

    def add(self, more: Tensor) -> None:  # noqa: ARG002
        raise AssertionError("PromptByPrompt: there is nothing to add where this suits")
