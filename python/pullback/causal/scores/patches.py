"""What each node writes, less what it would write if it were ablated: all that node scores need to know of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.attribution.local import LocalModel
from pullback.causal.ablation import Ablation
from pullback.causal.intervene import values_at
from pullback.causal.nodes import NodeSet
from pullback.ops import SparseActivations
from pullback.transcoders import LayeredDictionary

SITES = ("hook_mlp_out", "hook_attn_out")
"""Where nodes write, in a block: SITES[attention]."""


@dataclass(frozen=True)
class Writes:
    """Nodes at site `src` as they write at site `dst`: m vectors, of which nodes, at which positions."""

    src: str
    dst: str
    nodes: Tensor  # (m), places in the node set
    pos: Tensor  # (m)
    vectors: Tensor  # (m, d)


class Patches:
    """(z - z') W_dec of every feature of a node set at every site it writes to, and e - e' of every error; primed is
    what the ablation gives."""

    def __init__(self, local: LocalModel, nodes: NodeSet, ablation: Ablation) -> None:
        nodes.must_fit(local.dictionaries, local.trace)
        ablation.must_fit(local.n_pos)
        self.n, self.like, self.T = len(nodes), local.trace.embed, local.n_pos
        found = [(local.acts, dict(enumerate(local.errors))), (local.attention.acts, local.attention.errors)]
        self.writes: list[Writes] = []
        for attention, (sets, (acts, errors)) in enumerate(zip(local.dictionaries, found, strict=False)):
            there = ablation.of(attention=bool(attention))
            self.writes += self._of_kind(nodes, sets, acts, errors, there, attention=bool(attention))

    def _of_kind(
        self,
        nodes: NodeSet,
        sets: LayeredDictionary,
        acts: Mapping[int, SparseActivations],
        errors: Mapping[int, Tensor],
        ablation: Ablation,
        *,
        attention: bool,
    ) -> list[Writes]:
        """What nodes of MLPs write, or those of attention outputs."""
        writes, device = list[Writes](), self.like.device
        hook = SITES[attention]
        for layer, error in errors.items():
            site = f"blocks.{layer}.{hook}"
            here = (nodes.layer == layer) & (nodes.attention == attention)
            which = (here & nodes.is_error).nonzero()[:, 0].to(device)
            pos = nodes.pos.to(device)[which]
            writes.append(Writes(site, site, which, pos, error[pos] - ablation.error(layer, pos)))
            if layer not in sets:
                continue
            which = (here & ~nodes.is_error).nonzero()[:, 0].to(device)
            pos, ids = nodes.pos.to(device)[which], nodes.feature.to(device)[which]
            change = values_at(acts[layer], pos, ids) - ablation.features(layer, pos, ids)
            for dst in sets.targets(layer):
                vectors = change[:, None] * sets.decoder_rows(layer, ids, dst)
                writes.append(Writes(site, f"blocks.{dst}.{hook}", which, pos, vectors))
        return writes

    @property
    def sources(self) -> list[str]:
        """Sites that have nodes of their own."""
        return list(dict.fromkeys(w.src for w in self.writes if len(w.nodes)))

    @property
    def sites(self) -> list[str]:
        """Sites that nodes write to."""
        return list(dict.fromkeys(w.dst for w in self.writes))

    def along(self, gradients: Mapping[str, Tensor], src: str | None = None) -> Tensor:
        """Sum over what a node writes of its product with the gradients there, {site: (T, d)} -> (n); of nodes at `src`
        only, if given."""
        total = self.like.new_zeros(self.n)
        for w in self._of(src):
            total.index_add_(0, w.nodes, (gradients[w.dst][w.pos].to(total) * w.vectors).sum(-1))
        return total

    def together(self, src: str) -> dict[str, Tensor]:
        """All nodes at `src`, summed: {site: (T, d)}."""
        return {w.dst: self._summed(src, w.dst) for w in self._of(src)}

    def one_by_one(self, first: int, last: int) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Nodes first to last - 1, a row each: {site: (row, position, vector)}."""
        found: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        for dst in self.sites:
            here = [w for w in self.writes if w.dst == dst]
            nodes, pos, vectors = (torch.cat([getattr(w, name) for w in here]) for name in ("nodes", "pos", "vectors"))
            rows = (nodes >= first) & (nodes < last)
            found[dst] = (nodes[rows] - first, pos[rows], vectors[rows])
        return found

    def _of(self, src: str | None) -> list[Writes]:
        return [w for w in self.writes if src in (None, w.src)]

    def _summed(self, src: str, dst: str) -> Tensor:
        total = self.like.new_zeros(self.T, self.like.shape[1])
        for w in self._of(src):
            if w.dst == dst:
                total.index_add_(0, w.pos, w.vectors)
        return total
