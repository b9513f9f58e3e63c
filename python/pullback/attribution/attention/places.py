"""Where attention carries edges from and to: their loadings by head, query position and key position.

As of head loadings with hop "last": a path counts for the head it goes through last, which brings it from a key
position to the target's own. The loading of edge (s, t) on head h is mixing[h, query, key] <v[h, key, s], W_O g[t]>.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pullback.attribution.attention import flow
from pullback.attribution.attention.endpoints import Read
from pullback.attribution.attention.loadings import Batch, batches
from pullback.attribution.local import LocalModel

BY_SOURCE = 0


class Place(NamedTuple):
    """One entry of a head's pattern."""

    layer: int
    head: int
    query_pos: int
    key_pos: int


@dataclass(frozen=True, eq=False)
class Carried:
    """Weighted edges of one prompt, and how heads carry them.

    edges: (source, target) by node ids. weights: (E), what one unit of each counts.
    """

    local: LocalModel
    edges: list[tuple[str, str]]
    weights: Tensor
    known: Mapping[str, Read]

    def sums(self) -> tuple[Tensor, Tensor]:
        """Weighted loadings of all edges, (L, n_heads, Q, T), and the Q query positions: those of targets."""
        layers = self.local.trace.layers
        positions = torch.tensor(
            [int(target.rsplit("_", 1)[1]) for _, target in self.edges], device=self.weights.device
        )
        queries, query = positions.unique(return_inverse=True)
        H, T, Q = layers[0].mixing.shape[0], self.local.n_pos, len(queries)
        total = self.weights.new_zeros(len(layers), H, Q, T)
        for batch, k, v, at_z in self._meetings():
            n, d = v.shape[2:]
            toward = v.new_zeros(H, Q * n, d)  # what all targets at a query position ask of each source together
            wanted = at_z[:, batch.t] * self.weights[batch.which, None]
            toward.index_add_(1, query[batch.which] * n + batch.s, wanted)
            met = torch.einsum("hqnd,hknd->hqk", toward.view(H, Q, n, d), v)
            total[k] += layers[k].mixing[:, queries] * met
        return total, queries

    def through(self, places: list[Place]) -> Tensor:
        """Weighted loading of each edge at each of some places, (P, E)."""
        found = self.weights.new_zeros(len(places), len(self.edges))
        for batch, k, v, at_z in self._meetings():
            for p, (layer, h, query, key) in enumerate(places):
                if layer == k:
                    here = batch.reads.pos[batch.t] == query
                    met = (v[h, key, batch.s[here]] * at_z[h, batch.t[here]]).sum(-1)
                    mix = self.local.trace.layers[k].mixing[h, query, key]
                    found[p, batch.which[here]] = self.weights[batch.which[here]] * mix * met
        return found

    def _meetings(self) -> Iterator[tuple[Batch, int, Tensor, Tensor]]:
        """Of a few sources, layer after layer: what its heads read of them, (n_heads, T, n, d_head), and what targets
        read of the heads directly, (n_heads, m, d_head)."""
        for batch in batches(self.local, self.edges, BY_SOURCE, self.known):
            direct = list(flow.descend(self.local, batch.reads, heads=False))[::-1]
            arriving = flow.ascend(self.local, batch.sources, heads=True)
            for k, (layer, g, (field, _)) in enumerate(
                zip(self.local.trace.layers, direct, arriving, strict=False)  # the last is ln_final's
            ):
                yield batch, k, flow.read(layer, field), g @ layer.weights.W_O.transpose(1, 2)
