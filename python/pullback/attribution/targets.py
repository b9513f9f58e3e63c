"""What an engine pulls back: linear functionals of the frozen model, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pullback.attribution.local import LocalModel

SITES = ("hook_resid_pre", "hook_resid_mid", "ln2.hook_normalized", "mlp.hook_in", "ln_final")
BEFORE_BLOCK, MLP_STREAM, NORMALIZED, MLP_INPUT, FINAL = range(len(SITES))


@dataclass(frozen=True)
class Targets:
    """A batch of B linear functionals <v, x at a site> + constant, sorted as the caller likes.

    layer: (B), the site's layer, which is the number of MLPs below it; n_layers stands for everything behind the last
    block. site: (B), index into SITES. pos: (B). vectors: (B, d), as read at the site. own: (B), the constant that
    belongs to the target itself (b_enc and the norm's bias, or b_U minus its mean).
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
        """Where along the stream each is read, (B): 2 l before block l, 2 l + 1 where MLP l reads."""
        before = (self.site == BEFORE_BLOCK) | (self.site == FINAL)
        return 2 * self.layer + (~before).long()


def site_index(hook: str) -> int:
    """Of a hook name inside blocks.{l}; `ln2.hook_out` and `mlp.hook_in` are the same tensor."""
    return MLP_INPUT if hook == "ln2.hook_out" else SITES.index(hook)


def vectors_at_stream(local: LocalModel, targets: Targets) -> Tensor:
    """The targets' vectors as read at the residual stream, (B, d): through the frozen norm before their site."""
    t = local.trace
    vectors = targets.vectors.clone()
    for layer, site in torch.unique(torch.stack([targets.layer, targets.site]), dim=1).T.tolist():
        which = (targets.layer == layer) & (targets.site == site)
        v, pos = targets.vectors[which], targets.pos[which]
        if site == FINAL:
            vectors[which] = t.ln_final.pullback(v, t.final_scale[pos])
        elif site != BEFORE_BLOCK:
            vectors[which] = t.layers[layer].read_pullback(SITES[site], v, pos)
    return vectors


def feature_batch(local: LocalModel, chosen: Tensor) -> Targets:
    """Targets for features given by their place (B) among all active features, in layout order."""
    start = 0
    parts: list[Targets] = []
    found: list[Tensor] = []
    for i in sorted(local.acts):
        acts = local.acts[i]
        here = (chosen >= start) & (chosen < start + acts.nnz)
        at = chosen[here] - start
        start += acts.nnz
        parts.append(encoder_targets(local, i, acts.rows()[at], acts.indices[at].long()))
        found.append(here.nonzero()[:, 0])
    return joined(parts)[torch.argsort(torch.cat(found))]


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


def joined(parts: Sequence[Targets]) -> Targets:
    return Targets(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Targets)))
