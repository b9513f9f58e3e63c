"""Prompts of one length side by side, so that the linear engine pulls targets of all of them back at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pullback.attribution.heads import Heads
from pullback.attribution.layout import Layout
from pullback.lens import LayerTrace
from pullback.ops import SparseActivations

if TYPE_CHECKING:
    from pullback.attribution.local import LocalModel


class Stack:
    """Q prompts of T positions as T Q rows: row p Q + q is position p of prompt q.

    The first positions of all prompts are the first rows. What they share, weights and dictionaries, is read from one.
    Of a single prompt, rows are positions and the layout is its own.
    """

    def __init__(self, locals: Sequence[LocalModel]) -> None:
        self.locals = locals
        first = locals[0]
        self.n_prompts, self.n_pos, self.n_layers = len(locals), first.n_pos, first.n_layers
        self.sets, self.precision = first.sets, first.precision
        self.embed = self.rows([one.trace.embed for one in locals])
        self.pos_embed = self._maybe([one.trace.pos_embed for one in locals])
        self.errors = [self.rows(error) for error in zip(*(one.errors for one in locals), strict=True)]
        self.mlp_bias = {i: self.rows([one.mlp_bias[i] for one in locals]) for i in first.mlp_bias}
        self.attn_bias = [self.rows(bias) for bias in zip(*(one.attn_bias for one in locals), strict=True)]
        self.zeroed = [self.rows(rest) for rest in zip(*(one.zeroed or [] for one in locals), strict=True)] or None
        self.acts = {i: self._entries([one.acts[i] for one in locals]) for i in first.acts}
        self.layout = Layout(
            self.acts, self.n_pos * self.n_prompts, self.n_layers, self.pos_embed is not None, self.mlp_bias
        )

    def rows(self, per_prompt: Sequence[Tensor]) -> Tensor:
        """Q times (T, d) -> (T Q, d)."""
        return per_prompt[0] if len(per_prompt) == 1 else torch.stack(list(per_prompt), 1).flatten(0, 1)

    def _maybe(self, per_prompt: Sequence[Tensor | None]) -> Tensor | None:
        given = [one for one in per_prompt if one is not None]
        return self.rows(given) if given else None

    def _entries(self, per_prompt: Sequence[SparseActivations]) -> SparseActivations:
        if len(per_prompt) == 1:
            return per_prompt[0]
        row = torch.cat([acts.rows() * self.n_prompts + q for q, acts in enumerate(per_prompt)])
        order = torch.argsort(row, stable=True)
        counts = torch.stack([acts.indptr.diff() for acts in per_prompt], 1).flatten()
        indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        indices, values = (torch.cat([getattr(acts, f) for acts in per_prompt])[order] for f in ("indices", "values"))
        return SparseActivations(indptr, indices, values, per_prompt[0].n_features)

    @cached_property
    def layers(self) -> list[LayerTrace]:
        """Blocks whose norms have a scale for every row."""
        blocks = list(zip(*(one.trace.layers for one in self.locals), strict=True))
        return [replace(b[0], ln2_scale=self.rows([one.ln2_scale for one in b])) for b in blocks]

    @cached_property
    def heads(self) -> list[Heads]:
        blocks = zip(*(one.trace.layers for one in self.locals), strict=True)
        return [Heads(LayerTrace.stacked(block), self.precision) for block in blocks]

    @cached_property
    def row_of(self) -> Tensor:
        """The row that each source stands at, (n_sources)."""
        rows = torch.arange(self.n_pos * self.n_prompts, device=self.embed.device)
        entries = [self.acts[i].rows() for i in sorted(self.acts)]
        before = [rows] if self.pos_embed is None else [rows, rows]
        return torch.cat([*before, *entries, rows.repeat(2 * self.n_layers + len(self.mlp_bias))])

    @cached_property
    def depth_of(self) -> Tensor:
        """Where along the stream each source writes, (n_sources): what reads above it depends on it (`Targets.depth`).
        Block l's attention writes at 2 l, its MLP at 2 l + 1."""
        layout = self.layout
        depth = torch.full((layout.n_sources,), -1, device=self.embed.device)
        for spans, above in ((layout.features, 1), (layout.errors, 1), (layout.mlp_bias, 1), (layout.attn_bias, 0)):
            for layer, span in spans.items():
                depth[span] = 2 * layer + above
        return depth

    @cached_property
    def columns(self) -> list[Tensor]:
        """The sources of each prompt, in the order of its own layout."""
        prompt = self.row_of % self.n_prompts
        return [(prompt == q).nonzero()[:, 0] for q in range(self.n_prompts)]
