"""What an engine pulls back: linear functionals of the frozen model, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate

import torch
from torch import Tensor

from pullback.attribution.stack import Stack
from pullback.lens.depth import at_attention, at_mlp, before_block

SITES = ("hook_resid_pre", "hook_resid_mid", "ln2.hook_normalized", "mlp.hook_in", "ln_final", "hook_attn_out")
BEFORE_BLOCK, MLP_STREAM, NORMALIZED, MLP_INPUT, FINAL, ATTENTION = range(len(SITES))


@dataclass(frozen=True)
class Targets:
    """A batch of B linear functionals <table[row], x at a site> + constant, sorted as the caller likes.

    layer: (B), the site's layer, which is the number of MLPs below it; n_layers stands for everything behind the last
    block. site: (B), index into SITES. pos: (B); of Q prompts of T positions, row q T + p. row: (B), of the table. own:
    (B), the constant that belongs to the target itself (b_enc and the norm's bias, or what attention writes anyhow, or
    b_U minus its mean). table: (U, d), vectors as they read the site: one that is read at many positions, a feature's,
    is there once, and all that read it do so at one layer and site.
    """

    layer: Tensor
    site: Tensor
    pos: Tensor
    row: Tensor
    own: Tensor
    table: Tensor

    def __len__(self) -> int:
        return self.layer.shape[0]

    def __getitem__(self, which: Tensor | slice) -> Targets:
        return replace(self, **{name: getattr(self, name)[which] for name in OF_EACH})

    @property
    def vectors(self) -> Tensor:
        """As read at the sites, (B, d)."""
        return self.table[self.row]

    @property
    def depth(self) -> Tensor:
        """Where along the stream each is read, (B), see `lens.depth`."""
        before = (self.site == BEFORE_BLOCK) | (self.site == FINAL)
        inside = torch.where(self.site == ATTENTION, at_attention(self.layer), at_mlp(self.layer))
        return torch.where(before, before_block(self.layer), inside)


OF_EACH = [f.name for f in fields(Targets) if f.name != "table"]


def site_index(hook: str) -> int:
    """Of a hook name inside blocks.{l}; `ln2.hook_out` and `mlp.hook_in` are the same tensor."""
    return MLP_INPUT if hook == "ln2.hook_out" else SITES.index(hook)


def read_at_stream(stack: Stack, targets: Targets) -> tuple[Tensor, Tensor]:
    """The table as read at the residual stream, (U, d), through the frozen norm before its site but for the norm's
    denominator; and that of each target, a factor (B). Vectors that read attention's output are as they are."""
    table, factor = targets.table.clone(), torch.ones_like(targets.own)
    place = targets.layer * len(SITES) + targets.site
    of_row = place.new_full((len(table),), -1).scatter_(0, targets.row, place)
    for found in torch.unique(place).tolist():
        layer, site = divmod(found, len(SITES))
        if site in (BEFORE_BLOCK, ATTENTION):
            continue
        rows, own = of_row == found, place == found
        if site == FINAL:
            table[rows] = stack.ln_final.pullback(table[rows], table.new_ones(1))
            factor[own] = 1 / stack.final_scale[targets.pos[own], 0]
        else:
            table[rows] = stack.layers[layer].read_direction(SITES[site], table[rows])
            factor[own] = stack.layers[layer].read_factor(SITES[site], targets.pos[own])
    return table, factor


def vectors_at_stream(stack: Stack, targets: Targets) -> Tensor:
    """The targets' vectors as read at the residual stream, (B, d): through the frozen norm before their site."""
    table, factor = read_at_stream(stack, targets)
    return table[targets.row] * factor[:, None]


def feature_batch(stack: Stack, *chosen: Tensor) -> Targets:
    """Targets for features of every prompt, given by their places (B) among its active ones, in layout order.

    By kind and layer, and those of one by prompt: so places of one prompt that ascend keep their order.
    """
    parts = [
        ENCODERS[kind](stack, i, acts.rows()[entries], acts.indices[entries].long())
        for (kind, i), acts, entries in stack.entries(chosen)
    ]
    return joined(parts)


def encoder_targets(stack: Stack, layer: int, pos: Tensor, ids: Tensor) -> Targets:
    """Targets for features (B) of one layer, active or not, at positions (B)."""
    ids, row = torch.unique(ids, return_inverse=True)
    hook_in = stack.sets.hook_in(layer)
    table = stack.sets.encoder_rows(layer, ids)
    own = stack.sets.b_enc(layer)[ids] + table @ stack.layers[layer].read_bias(hook_in)
    return _at_one_site(layer, site_index(hook_in), pos, row, own[row], table)


def attention_targets(stack: Stack, layer: int, pos: Tensor, ids: Tensor) -> Targets:
    """Targets for features (B), active or not, of one layer's attention output at positions (B)."""
    assert stack.saes is not None
    ids, row = torch.unique(ids, return_inverse=True)
    table = stack.saes.encoder_rows(layer, ids)
    constant = torch.linalg.vecdot(table[row], stack.attn_constant[layer][pos])
    return _at_one_site(layer, ATTENTION, pos, row, stack.saes.b_enc(layer)[ids][row] + constant, table)


def _at_one_site(layer: int, site: int, pos: Tensor, row: Tensor, own: Tensor, table: Tensor) -> Targets:
    return Targets(torch.full_like(pos, layer), torch.full_like(pos, site), pos, row, own, table)


ENCODERS = {"features": encoder_targets, "attn_features": attention_targets}


def joined(parts: Sequence[Targets]) -> Targets:
    before = [0, *accumulate(len(part.table) for part in parts)]
    moved = [replace(part, row=part.row + start) for part, start in zip(parts, before, strict=False)]
    return Targets(*(torch.cat([getattr(part, f.name) for part in moved]) for f in fields(Targets)))
