"""What an engine pulls back: linear functionals of the frozen model, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pullback.attribution.stack import Stack
from pullback.lens.depth import at_attention, at_mlp, before_block

SITES = ("hook_resid_pre", "hook_resid_mid", "ln2.hook_normalized", "mlp.hook_in", "ln_final", "hook_attn_out")
BEFORE_BLOCK, MLP_STREAM, NORMALIZED, MLP_INPUT, FINAL, ATTENTION = range(len(SITES))


@dataclass(frozen=True)
class Targets:
    """A batch of B linear functionals <v, x at a site> + constant, sorted as the caller likes.

    layer: (B), the site's layer, which is the number of MLPs below it; n_layers stands for everything behind the last
    block. site: (B), index into SITES. pos: (B); of Q prompts of T positions, row q T + p. vectors: (B, d), as read at
    the site. own: (B), the constant that belongs to the target itself (b_enc and the norm's bias, or what attention
    writes anyhow, or b_U minus its mean).
    """

    layer: Tensor
    site: Tensor
    pos: Tensor
    vectors: Tensor
    own: Tensor

    def __len__(self) -> int:
        return self.layer.shape[0]

    def __getitem__(self, which: Tensor | slice) -> Targets:
        return Targets(*(getattr(self, f.name)[which] for f in fields(self)))

    @property
    def depth(self) -> Tensor:
        """Where along the stream each is read, (B), see `lens.depth`."""
        before = (self.site == BEFORE_BLOCK) | (self.site == FINAL)
        inside = torch.where(self.site == ATTENTION, at_attention(self.layer), at_mlp(self.layer))
        return torch.where(before, before_block(self.layer), inside)


def site_index(hook: str) -> int:
    """Of a hook name inside blocks.{l}; `ln2.hook_out` and `mlp.hook_in` are the same tensor."""
    return MLP_INPUT if hook == "ln2.hook_out" else SITES.index(hook)


def vectors_at_stream(stack: Stack, targets: Targets) -> Tensor:
    """The targets' vectors as read at the residual stream, (B, d): through the frozen norm before their site. Those
    that read attention's output are as they are."""
    places, sizes = torch.unique_consecutive(targets.layer * len(SITES) + targets.site, return_counts=True)
    parts: list[Tensor] = []
    of_place = zip(targets.vectors.split(sizes.tolist()), targets.pos.split(sizes.tolist()), strict=True)
    for place, (v, pos) in zip(places.tolist(), of_place, strict=True):
        layer, site = divmod(place, len(SITES))
        if site == FINAL:
            v = stack.ln_final.pullback(v, stack.final_scale[pos])
        elif site not in (BEFORE_BLOCK, ATTENTION):
            v = stack.layers[layer].read_pullback(SITES[site], v, pos)
        parts.append(v)
    return torch.cat(parts) if parts else targets.vectors


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
    hook_in = stack.sets.hook_in(layer)
    rows = stack.sets.encoder_rows(layer, ids)
    bias = stack.layers[layer].read_bias(hook_in)
    return Targets(
        layer=torch.full_like(pos, layer),
        site=torch.full_like(pos, site_index(hook_in)),
        pos=pos,
        vectors=rows,
        own=stack.sets.b_enc(layer)[ids] + rows @ bias,
    )


def attention_targets(stack: Stack, layer: int, pos: Tensor, ids: Tensor) -> Targets:
    """Targets for features (B), active or not, of one layer's attention output at positions (B)."""
    assert stack.saes is not None
    rows = stack.saes.encoder_rows(layer, ids)
    return Targets(
        layer=torch.full_like(pos, layer),
        site=torch.full_like(pos, ATTENTION),
        pos=pos,
        vectors=rows,
        own=stack.saes.b_enc(layer)[ids] + torch.linalg.vecdot(rows, stack.attn_constant[layer][pos]),
    )


ENCODERS = {"features": encoder_targets, "attn_features": attention_targets}


def joined(parts: Sequence[Targets]) -> Targets:
    return Targets(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Targets)))
