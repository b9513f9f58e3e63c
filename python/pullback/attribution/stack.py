"""Prompts of one length side by side, so that the linear engine pulls targets of all of them back at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from pullback.attribution.heads import Heads
from pullback.attribution.layout import Layout
from pullback.attribution.spans import Spans
from pullback.lens import LayerTrace
from pullback.lens.depth import n_depths
from pullback.ops import SparseActivations

if TYPE_CHECKING:
    from pullback.attribution.local import LocalModel

CARRIED = 1 << 22  # elements of what attention writes of a block of source positions
BLOCKS = 16  # of them: each is multiplied with all gradients, which of long prompts do not stay in a cache


class Reach(NamedTuple):
    """The sources at the first P positions of every prompt: rows q P + p of features, and where the sources stand in a
    row of edges. Every span of it has as many for each prompt: the first ones of the same span of the prompt's own
    layout, and of features, behind them, activations of 0 for what other prompts have more."""

    acts: dict[tuple[str, int], SparseActivations]  # by kind and layer, as of the layout
    layout: Layout
    spans: dict[tuple[str, int], slice]  # of the layout, all


class Stack:
    """Q prompts of T positions. What they share, weights and dictionaries, is read from one."""

    def __init__(self, locals: Sequence[LocalModel]) -> None:
        # Not the local models themselves: one of them may hold this stack.
        self.traces = [one.trace for one in locals]
        self.acts = [one.active for one in locals]
        self.layouts = [one.layout for one in locals]
        first = locals[0]
        self.n_prompts, self.n_pos, self.n_layers = len(locals), first.n_pos, first.n_layers
        self.sets, self.precision = first.sets, first.precision
        self.saes = first.attention.saes
        self.ln_final = first.trace.ln_final
        self.at_attention = set(first.attention.acts)
        # All of these (Q, T, d).
        self.embed = torch.stack([one.trace.embed for one in locals])
        positions = [one.trace.pos_embed for one in locals]
        self.pos_embed = None if positions[0] is None else torch.stack([p for p in positions if p is not None])
        self.errors = [torch.stack(error) for error in zip(*(one.errors for one in locals), strict=True)]
        self.mlp_bias = self._by_layer([one.mlp_bias for one in locals])
        self.attn_bias = [torch.stack(bias) for bias in zip(*(one.attn_bias for one in locals), strict=True)]
        self.attn_errors = self._by_layer([one.attention.errors for one in locals])
        self.attn_zeroed = self._by_layer([one.attention.zeroed for one in locals])
        self.zeroed = [torch.stack(rest) for rest in zip(*(one.zeroed or [] for one in locals), strict=True)]
        self._attn_constants = [one.attention.constant for one in locals]
        self._reach: dict[int, Reach] = {}
        self._written: dict[tuple[str, int], Tensor] = {}

    @staticmethod
    def _by_layer(prompts: Sequence[Mapping[int, Tensor]]) -> dict[int, Tensor]:
        return {i: torch.stack([one[i] for one in prompts]) for i in prompts[0]}

    @cached_property
    def layers(self) -> list[LayerTrace]:
        """Blocks whose MLP's norm has a scale for every row q T + p."""
        blocks = zip(*(one.layers for one in self.traces), strict=True)
        return [replace(block[0], ln2_scale=torch.cat([one.ln2_scale for one in block])) for block in blocks]

    @cached_property
    def final_scale(self) -> Tensor:
        """Of the last norm, for every row q T + p."""
        return torch.cat([one.final_scale for one in self.traces])

    @cached_property
    def attn_constant(self) -> dict[int, Tensor]:
        """What attention writes anyhow, of layers whose features stand in for it, (Q T, d)."""
        return {i: torch.cat([one[i] for one in self._attn_constants]) for i in self._attn_constants[0]}

    @cached_property
    def active(self) -> dict[tuple[str, int], SparseActivations]:
        """Features by kind and layer, Q T rows."""
        parts = {which: [one[which] for one in self.acts] for which in self.acts[0]}
        return {
            which: SparseActivations.stacked(part, part[0].n_features, part[0].values) for which, part in parts.items()
        }

    def entries(self, chosen: Sequence[Tensor]) -> Iterator[tuple[tuple[str, int], SparseActivations, Tensor]]:
        """By kind and layer: `active`, and which of its entries are the features that every prompt has at these places
        among its own."""
        counts = torch.tensor([[acts.nnz for acts in one.values()] for one in self.acts])
        in_order = (counts.flatten().cumsum(0) - counts.flatten()).view_as(counts)  # prompt by prompt
        stacked = counts.cumsum(0) - counts  # of each kind and layer, prompt by prompt
        sizes = torch.tensor([len(places) for places in chosen])
        place = torch.cat([places.cpu() for places in chosen]) + in_order[:, 0].repeat_interleave(sizes)
        own = torch.searchsorted(in_order.flatten(), place, right=True) - 1
        entry, which = place + (stacked - in_order).flatten()[own], own % counts.shape[1]
        found = torch.bincount(which, minlength=counts.shape[1]).tolist()
        split = entry[torch.argsort(which, stable=True)].split(found)
        for (kind, acts), entries in zip(self.active.items(), split, strict=True):
            yield kind, acts, entries.to(acts.device)

    @cached_property
    def heads(self) -> list[Heads]:
        return list(self.made_heads())

    def made_heads(self) -> Iterator[Heads]:
        """Of every layer, made when it is asked for."""
        for block in zip(*(one.layers for one in self.traces), strict=True):
            yield Heads(LayerTrace.stacked(block), self.precision)

    def skip(self, i: int) -> Tensor | None:
        """The skip path beside the features of layer i, if it has any."""
        return self.sets.skip(i) if i in self.sets else None

    def writes_little(self, P: int) -> bool:
        """Whether what the first layer's attention writes, of every source at each of P positions, is a few blocks."""
        return P * P * self.n_prompts * self.embed.shape[2] <= BLOCKS * CARRIED

    def written_by(self, source: tuple[str, int], P: int) -> Iterator[tuple[slice, Tensor]]:
        """What the first layer's attention writes at the first P positions of what the stream starts with there:
        source positions, and (Q, P, n_sources, d), a block of them at a time; of short prompts, kept."""
        heads, T, u = self.heads[0], self.n_pos, self.stream[source]
        if T * T * self.n_prompts * u.shape[2] <= CARRIED:
            if source not in self._written:
                self._written[source] = heads.written_by(u, slice(0, T), T)
            yield slice(0, P), self._written[source][:, :P, :P]
            return
        step = max(1, CARRIED // (P * self.n_prompts * u.shape[2]))
        for first in range(0, P, step):
            sources = slice(first, min(first + step, P))
            yield sources, heads.written_by(u, sources, P)

    @cached_property
    def _all_leaves(self) -> dict[tuple[str, int], Tensor]:
        leaves = {"errors": dict(enumerate(self.errors)), "attn_errors": self.attn_errors, "mlp_bias": self.mlp_bias}
        leaves["attn_bias"] = dict(enumerate(self.attn_bias))
        return {(kind, layer): u for kind, by in leaves.items() for layer, u in by.items()}

    @cached_property
    def leaves(self) -> dict[tuple[str, int], Tensor]:
        """What writes one vector a position (Q, T, d), by kind and layer as in `Layout.spans`, but for what is 0
        everywhere: attention without biases, MLPs without errors."""
        return {leaf: u for leaf, u in self._all_leaves.items() if bool(u.any())}

    @cached_property
    def stream(self) -> dict[tuple[str, int], Tensor]:
        """What the stream starts with (Q, T, d), by kind, and no layer."""
        start = {("embedding", -1): self.embed}
        return start if self.pos_embed is None else start | {("position", -1): self.pos_embed}

    def vectors(self, name: tuple[str, int]) -> Tensor:
        """Of `stream` or `leaves`."""
        return self.stream[name] if name in self.stream else self.leaves[name]

    def reach(self, P: int) -> Reach:
        if P not in self._reach:
            acts = {which: self._features(which, P) for which in self.acts[0]}
            layout = Layout(acts, P * self.n_prompts, self.n_layers, self.pos_embed is not None, self.mlp_bias)
            self._reach[P] = Reach(acts, layout, layout.spans(n_depths(self.n_layers)))
        return self._reach[P]

    @cached_property
    def spans(self) -> Spans:
        silent = self._all_leaves.keys() - self.leaves.keys()
        return Spans(self.layouts, self.acts, self.n_pos, self.n_layers, silent)

    def columns(self, P: int) -> Tensor:
        """Where each span of each prompt begins in a row of edges from the first P positions of all prompts, (Q, S)."""
        starts, stops = torch.tensor([(span.start, span.stop) for span in self.reach(P).spans.values()]).T
        return starts + torch.arange(self.n_prompts)[:, None] * ((stops - starts) // self.n_prompts)

    def _features(self, which: tuple[str, int], P: int) -> SparseActivations:
        """Those at the first P positions, which are a prompt's first, as many of each prompt; no more than its own."""
        indptr, indices, values = self._padded[which]
        own = indptr[:, P, None]
        width = int(own.max())
        starts = torch.arange(self.n_prompts, device=own.device)[:, None] * width
        within = torch.arange(width, device=own.device)
        return SparseActivations(
            torch.cat([(indptr[:, :P] + starts).flatten(), own.new_tensor([width * self.n_prompts])]),
            indices[:, :width].flatten(),
            torch.where(within < own, values[:, :width], 0).flatten(),
            self.acts[0][which].n_features,
        )

    @cached_property
    def _padded(self) -> dict[tuple[str, int], tuple[Tensor, Tensor, Tensor]]:
        """Of each kind and layer: row pointers (Q, T + 1), ids and activations (Q, m), 0 behind a prompt's own."""

        def side_by_side(per_prompt: Sequence[Tensor], filler: float = 0) -> Tensor:
            return nn.utils.rnn.pad_sequence(list(per_prompt), batch_first=True, padding_value=filler)

        padded: dict[tuple[str, int], tuple[Tensor, Tensor, Tensor]] = {}
        for which in self.acts[0]:
            acts = [one[which] for one in self.acts]
            indptr = torch.stack([own.indptr for own in acts])
            # Of a dictionary in a file, rows of the active features are in memory, and no others.
            one_of_them = int(torch.cat([own.indices for own in acts])[:1].sum())
            ids = side_by_side([own.indices for own in acts], filler=one_of_them)
            padded[which] = indptr, ids, side_by_side([own.values for own in acts])
        return padded
