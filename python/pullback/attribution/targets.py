"""What an engine pulls back: linear functionals of the frozen model, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pullback.attribution.local import LocalModel
from pullback.lens.depth import at_attention, at_mlp, before_block

SITES = ("hook_resid_pre", "hook_resid_mid", "ln2.hook_normalized", "mlp.hook_in", "ln_final", "hook_attn_out")
BEFORE_BLOCK, MLP_STREAM, NORMALIZED, MLP_INPUT, FINAL, ATTENTION = range(len(SITES))


@dataclass(frozen=True)
class Targets:
    """A batch of B linear functionals <v, x at a site> + constant, sorted as the caller likes.

    layer: (B), the site's layer, which is the number of MLPs below it; n_layers stands for everything behind the last
    block. site: (B), index into SITES. pos: (B). vectors: (B, d), as read at the site. own: (B), the constant that
    belongs to the target itself (b_enc and the norm's bias, or what attention writes anyhow, or b_U minus its mean).
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


def vectors_at_stream(local: LocalModel, targets: Targets) -> Tensor:
    """The targets' vectors as read at the residual stream, (B, d): through the frozen norm before their site. Those
    that read attention's output are as they are."""
    t = local.trace
    places, sizes = torch.unique_consecutive(targets.layer * len(SITES) + targets.site, return_counts=True)
    parts: list[Tensor] = []
    of_place = zip(targets.vectors.split(sizes.tolist()), targets.pos.split(sizes.tolist()), strict=True)
    for place, (v, pos) in zip(places.tolist(), of_place, strict=True):
        layer, site = divmod(place, len(SITES))
        if site == FINAL:
            v = t.ln_final.pullback(v, t.final_scale[pos])
        elif site not in (BEFORE_BLOCK, ATTENTION):
            v = t.layers[layer].read_pullback(SITES[site], v, pos)
        parts.append(v)
    return torch.cat(parts) if parts else targets.vectors


def feature_batch(local: LocalModel, chosen: Tensor) -> Targets:
    """Targets for features given by their place (B) among all active features, in layout order."""
    if not bool((chosen[1:] >= chosen[:-1]).all()):
        ascending, order = chosen.sort(stable=True)
        return feature_batch(local, ascending)[torch.argsort(order)]
    active = local.active
    ends = torch.tensor([acts.nnz for acts in active.values()], device=chosen.device).cumsum(0)
    first = start = 0
    parts: list[Targets] = []
    for ((kind, i), acts), last in zip(active.items(), torch.searchsorted(chosen, ends).tolist(), strict=True):
        at = chosen[first:last] - start
        parts.append(ENCODERS[kind](local, i, acts.rows()[at], acts.indices[at].long()))
        first, start = last, start + acts.nnz
    return joined(parts)


def encoder_targets(local: LocalModel, layer: int, pos: Tensor, ids: Tensor) -> Targets:
    """Targets for features (B) of one layer, active or not, at positions (B)."""
    hook_in = local.sets.hook_in(layer)
    rows = local.sets.encoder_rows(layer, ids)
    bias = local.trace.layers[layer].read_bias(hook_in)
    return Targets(
        layer=torch.full_like(pos, layer),
        site=torch.full_like(pos, site_index(hook_in)),
        pos=pos,
        vectors=rows,
        own=local.sets.b_enc(layer)[ids] + rows @ bias,
    )


def attention_targets(local: LocalModel, layer: int, pos: Tensor, ids: Tensor) -> Targets:
    """Targets for features (B), active or not, of one layer's attention output at positions (B)."""
    saes, constant = local.attention.sets, local.attention.constant[layer]
    rows = saes.encoder_rows(layer, ids)
    return Targets(
        layer=torch.full_like(pos, layer),
        site=torch.full_like(pos, ATTENTION),
        pos=pos,
        vectors=rows,
        own=saes.b_enc(layer)[ids] + torch.linalg.vecdot(rows, constant[pos]),
    )


ENCODERS = {"features": encoder_targets, "attn_features": attention_targets}


def joined(parts: Sequence[Targets]) -> Targets:
    return Targets(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Targets)))
