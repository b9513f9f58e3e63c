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


@dataclass(frozen=True)
class Writes:
    """Nodes of layer `src` at the MLP output of layer `dst`: m vectors, of which nodes, at which positions."""

    src: int
    dst: int
    nodes: Tensor  # (m), places in the node set
    pos: Tensor  # (m)
    vectors: Tensor  # (m, d)


class Patches:
    """(z - z') W_dec of every feature of a node set at every layer it writes to, and e - e' of every error; primed is
    what the ablation gives."""

    def __init__(self, local: LocalModel, nodes: NodeSet, ablation: Ablation) -> None:
        nodes.must_fit(local.dictionaries, local.trace)
        ablation.must_fit(local.n_pos)
        self.n, self.like, self.T = len(nodes), local.trace.embed, local.n_pos
        self.writes: list[Writes] = []
        device = self.like.device
        for layer in range(local.n_layers):
            here = nodes.layer == layer
            which = (here & nodes.is_error).nonzero()[:, 0].to(device)
            pos = nodes.pos.to(device)[which]
            self.writes.append(Writes(layer, layer, which, pos, local.errors[layer][pos] - ablation.error(layer, pos)))
            if layer not in local.sets:
                continue
            which = (here & ~nodes.is_error).nonzero()[:, 0].to(device)
            pos, ids = nodes.pos.to(device)[which], nodes.feature.to(device)[which]
            change = values_at(local.acts[layer], pos, ids) - ablation.features(layer, pos, ids)
            for dst in local.sets.targets(layer):
                vectors = change[:, None] * local.sets.decoder_rows(layer, ids, dst)
                self.writes.append(Writes(layer, dst, which, pos, vectors))

    def along(self, gradients: Mapping[int, Tensor], src: int | None = None) -> Tensor:
        """Sum over what a node writes of its product with the gradients there, {layer: (T, d)} -> (n); of nodes of
        layer `src` only, if given."""
        total = self.like.new_zeros(self.n)
        for w in self._of(src):
            total.index_add_(0, w.nodes, (gradients[w.dst][w.pos].to(total) * w.vectors).sum(-1))
        return total

    def together(self, src: int) -> dict[int, Tensor]:
        """All nodes of layer `src`, summed: {layer: (T, d)}."""
        return {w.dst: self._summed(src, w.dst) for w in self._of(src)}

    def one_by_one(self, first: int, last: int) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
        """Nodes first to last - 1, a row each: {layer: (row, position, vector)}."""
        found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        for dst in sorted({w.dst for w in self.writes}):
            here = [w for w in self.writes if w.dst == dst]
            nodes, pos, vectors = (torch.cat([getattr(w, name) for w in here]) for name in ("nodes", "pos", "vectors"))
            rows = (nodes >= first) & (nodes < last)
            found[dst] = (nodes[rows] - first, pos[rows], vectors[rows])
        return found

    def _of(self, src: int | None) -> list[Writes]:
        return [w for w in self.writes if src in (None, w.src)]

    def _summed(self, src: int, dst: int) -> Tensor:
        total = self.like.new_zeros(self.T, self.like.shape[1])
        for w in self._of(src):
            if w.dst == dst:
                total.index_add_(0, w.pos, w.vectors)
        return total
