"""Sweeps of all prompts of a stack at once: large products, on any device and in any precision."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pullback.attribution.linear.columns import Columns, share_columns
from pullback.attribution.linear.sweep import Source, Sweep
from pullback.attribution.linear.table import inverse
from pullback.attribution.linear.taken import Taken, Vectors
from pullback.attribution.stack import Stack
from pullback.attribution.targets import Targets
from pullback.lens.depth import n_depths
from pullback.ops import contract
from pullback.ops.edges import SpanRows, empty_rows, take_spans
from pullback.ops.frozen import Placed, contract_leaves, contract_written
from pullback.transcoders import Rows, in_memory


def rows_side_by_side(stack: Stack, targets: Targets) -> tuple[SpanRows, Tensor]:
    """Edges of targets of every prompt of a stack, in their order, and the mass of zeroed positions (B).

    A row lists what can matter to its target at its depth, of the positions that its part of the sweep reaches.
    """
    columns = share_columns(stack, targets)
    Q, of_target, prompt_of = stack.n_prompts, columns.of_target.cpu(), targets.pos.cpu() // stack.n_pos
    order = torch.argsort(of_target * Q + prompt_of)  # rows by column, those of a part of the sweep together
    column, prompt = of_target[order], prompt_of[order]
    positions, depths, kind = _kinds(stack, columns)
    shapes = stack.spans.shapes(
        stack.spans.lengths(positions, depths), torch.stack([stack.columns(P) for P in positions.tolist()])
    )
    n_sources = max(layout.n_sources for layout in stack.layouts)
    rows = empty_rows(columns.table.vectors, kind[column] * Q + prompt, shapes, n_sources)
    zeroed = torch.empty(len(column), dtype=columns.table.vectors.dtype)
    before = [0, *torch.bincount(column, minlength=len(kind)).cumsum(0).tolist()]
    for part in _sweep(stack, columns):
        own = slice(before[part.which.start], before[part.which.stop])
        at = column[own] - part.which.start
        take_spans(part.edges.cpu(), at, rows[own])
        zeroed[own] = part.zeroed.cpu()[prompt[own], at]
    places = inverse(order)
    return rows[places], zeroed[places]


def _kinds(stack: Stack, columns: Columns) -> tuple[Tensor, Tensor, Tensor]:
    """Positions reached by rows of each kind, their depth, and which kind each column is of, (n)."""
    depths = n_depths(stack.n_layers)
    sweeps = list(columns.sweeps())
    reach = torch.tensor([columns.reach_of(which) for which in sweeps])
    reach = reach.repeat_interleave(torch.tensor([which.stop - which.start for which in sweeps]))
    found, kind = torch.unique(reach * depths + columns.depth.cpu(), return_inverse=True)
    return found // depths, found % depths, kind


class Part(NamedTuple):
    """Edges of some columns. A target's are those of its column from sources of its own prompt (`Stack.columns`)."""

    which: slice
    edges: Tensor  # (n, n_sources)
    zeroed: Tensor  # (Q, n)


def _sweep(stack: Stack, columns: Columns) -> Iterator[Part]:
    """Direct effects of the sources of every prompt of a stack on its targets, some columns at a time."""
    read: dict[int, Vectors] = {}
    for which in columns.sweeps():
        part = SideBySide(stack, columns, which, read)
        Sweep(stack, part).run()
        yield Part(which, part.edges, part.zeroed)


class SideBySide:
    """`Gradients` of some columns, of one cone.

    Args:
        read: what heads take of the vectors at a depth, of all columns, as far as a sweep has come to it.

    Attributes:
        P: positions of the cone: nothing after the last target's matters to any of them.
        R: (Q P, joined, d), gradient at the residual stream.
        just_taken: what R consists of, if that is nothing but what attention took of targets that have just joined.
    """

    def __init__(self, stack: Stack, columns: Columns, which: slice, read: dict[int, Vectors]) -> None:
        self.stack, self.columns, self.first, self.read = stack, columns, which.start, read
        self.Q, self.P, n = stack.n_prompts, columns.reach_of(which), which.stop - which.start
        self.reach = stack.reach(self.P)
        like = columns.table.vectors
        self.edges = like.new_zeros(n, self.reach.layout.n_sources)
        self.zeroed = like.new_zeros(self.Q, n)
        self.R = like.new_zeros(self.Q * self.P, 0, like.shape[1])
        self.just_taken: Taken | None = None
        self.at_depth = torch.bincount(columns.depth[which]).tolist()

    @property
    def n_joined(self) -> int:
        return self.R.shape[1]

    @property
    def joined(self) -> bool:
        return self.n_joined > 0

    def waits(self, depth: int) -> bool:
        return self._number(depth) > 0

    def _number(self, depth: int) -> int:
        return self.at_depth[depth] if depth < len(self.at_depth) else 0

    def _waiting(self, depth: int) -> tuple[Tensor, Placed]:
        """Vectors (u, d) at the stream of all columns at this depth, and where those that wait stand, (Q, m)."""
        start = self.first + self.n_joined
        return self.columns.of(slice(start, start + self._number(depth)))

    def stand(self, depth: int) -> None:
        vectors, at = self._waiting(depth)
        Q, m = at.row.shape
        stream = vectors.new_zeros(Q * self.P, m, vectors.shape[1])
        rows = torch.arange(Q, device=at.pos.device)[:, None] * self.P + at.pos
        stream[rows, torch.arange(m, device=at.pos.device)] = vectors[at.row] * at.factor[..., None]
        self._join(stream)

    def take(self, depth: int, i: int, *, standing: bool) -> None:
        vectors, at = self._waiting(depth)
        if depth not in self.read:
            self.read[depth] = Vectors(self.stack.heads[i], vectors, self.columns.table.readers, standing=standing)
        self._join(Taken(self.read[depth], at))

    def _join(self, fresh: Tensor | Taken) -> None:
        gradient = fresh.spread(self.P) if isinstance(fresh, Taken) else fresh
        self.just_taken = fresh if isinstance(fresh, Taken) and not self.joined else None
        self.R = torch.cat([self.R, gradient], dim=1) if self.joined else gradient

    def contract(self, source: Source, W_dec: Rows) -> None:
        active, rows = in_memory(self.reach.acts[source], W_dec)
        G = self.R.transpose(0, 1).to(self.stack.precision)
        contract(G, active, rows, out=self.edges[: self.n_joined, self.reach.spans[source]])

    def leaves(self, *sources: Source) -> None:
        starts = [self.reach.spans[source].start for source in sources]
        leaves = [self.stack.vectors(source)[:, : self.P] for source in sources]
        contract_leaves(self.R, leaves, starts, self.edges[: self.n_joined])

    def own(self, source: Source, depth: int) -> None:
        vectors, at = self._waiting(depth)
        span = self.edges[self.n_joined : self.n_joined + self._number(depth), self.reach.spans[source]]
        prompt = torch.arange(self.Q, device=at.pos.device)[:, None]
        column = torch.arange(len(span), device=at.pos.device).expand_as(at.pos)
        u = self.stack.vectors(source)[prompt, at.pos]
        span[column, prompt * self.P + at.pos] = (vectors[at.row] * u).sum(-1) * at.factor

    def through_heads(self, i: int) -> None:
        heads, taken = self.stack.heads[i], self.just_taken
        if taken is None or not taken.add_step(heads, self.R):
            heads.add_pullback(self.R, None if taken is None else taken.at_z_of(heads, self.P))
        self.just_taken = None

    def written(self, source: Source) -> None:
        into = self.edges[: self.n_joined, self.reach.spans[source]].unflatten(1, (self.Q, self.P))
        for sources, written in self.stack.written_by(source, self.P):
            contract_written(self.R.unflatten(0, (self.Q, self.P)), written, sources.start, into[:, :, sources])

    def lose(self, u: Tensor) -> None:
        at_each_row = torch.linalg.vecdot(self.R, u[:, : self.P].reshape(len(self.R), 1, -1)).T
        lost = at_each_row.view(self.n_joined, self.Q, self.P)
        self.zeroed[:, : self.n_joined] += lost.sum(2).T

    def through_skip(self, i: int, W_skip: Tensor) -> Tensor:
        stack = self.stack
        rows = torch.arange(self.Q * stack.n_pos, device=self.R.device).view(self.Q, -1)[:, : self.P]
        read = (self.R @ W_skip).flatten(0, 1)
        rows = rows.flatten().repeat_interleave(self.n_joined)
        return stack.layers[i].read_pullback(stack.sets.hook_in(i), read, rows).view_as(self.R)

    def add(self, more: Tensor) -> None:
        self.R += more
        self.just_taken = None
