"""From rows of edges to a `Graph`: node table, CSR, dropped mass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback.attribution import nodes as k
from pullback.attribution.graph import Graph
from pullback.attribution.influence import EPS, flow
from pullback.attribution.local import LocalModel
from pullback.attribution.targets import LogitTargets

CHUNK_ENTRIES = 1 << 20


class EdgeRows:
    """Rows of edges over all sources, stored without zeros, in the order they come.

    A target is named by its place among the active features, or -1 - k for the k-th logit.
    """

    def __init__(self, n_sources: int) -> None:
        self.n_sources = n_sources
        self._names: list[Tensor] = []
        self._own: list[Tensor] = []
        self._zeroed: list[Tensor] = []
        self._counts: list[Tensor] = []
        self._sources: list[Tensor] = []
        self._weights: list[Tensor] = []

    def append(self, names: Tensor, own: Tensor, block: Tensor, zeroed: Tensor) -> None:
        """names (B), own constants (B), edges (B, n_sources), zeroed mass (B)."""
        self._names.append(names.cpu())
        self._own.append(own.cpu())
        self._zeroed.append(zeroed.cpu())
        self._counts.append(block.count_nonzero(1).cpu())
        # int64 places of the entries of a whole block would be several times its size: a few rows at a time.
        for part in block.split(max(1, CHUNK_ENTRIES // self.n_sources)):
            places = part.flatten().nonzero()[:, 0]
            self._sources.append((places % self.n_sources).to(torch.int32).cpu())
            self._weights.append(part.flatten()[places].cpu())

    def joined(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """names, own, zeroed, row of each edge, source of each edge, weight of each edge."""
        counts = torch.cat(self._counts)
        rows = torch.repeat_interleave(torch.arange(len(counts)), counts)
        cat = torch.cat
        return cat(self._names), cat(self._own), cat(self._zeroed), rows, cat(self._sources).long(), cat(self._weights)

    def influence(self, local: LocalModel, logits: LogitTargets) -> Tensor:
        """Influence of every active feature on the logits through the rows there are so far, (n_features) float64."""
        names, _, _, rows, sources, weights = self.joined()
        features = local.layout.all_features
        n = features.stop - features.start
        size = weights.abs().double()
        counted = size * local.layout.counts_in_scores()[sources]
        shares = size / size.new_zeros(len(names)).index_add_(0, rows, counted).clamp(min=EPS)[rows]
        # Nodes here: the active features in their places, then the logits. Other sources pass nothing on.
        node = torch.where(names < 0, n - 1 - names, names)
        weight = torch.cat([size.new_zeros(n), logits.probabilities.cpu().double()])
        on = (sources >= features.start) & (sources < features.stop)
        return flow(node[rows[on]], sources[on] - features.start, shares[on], weight)[:n]


def assemble(local: LocalModel, logits: LogitTargets, edges: EdgeRows, chosen: Tensor, meta: dict[str, Any]) -> Graph:
    """The graph on the chosen features (places, ascending); what other features contribute becomes dropped mass."""
    names, own, zeroed, rows, sources, weights = edges.joined()
    layout = local.layout
    first = layout.all_features.start
    keep = torch.ones(layout.n_sources, dtype=torch.bool)
    keep[layout.all_features] = False
    keep[first + chosen] = True
    new_id = torch.cumsum(keep, 0) - 1
    n_sources, K = int(keep.sum()), len(logits.labels)
    first_own = n_sources
    n_targets = len(chosen) + K
    n_nodes = n_sources + n_targets + K

    # Own leaves stand in target order: features as they stand, then logits, which are the last nodes.
    is_logit = names < 0
    target_node = torch.where(is_logit, n_nodes - K + (-1 - names), new_id[(first + names).clamp(min=0)])
    own_rank = torch.where(is_logit, len(chosen) + (-1 - names), torch.searchsorted(chosen, names.clamp(min=0)))

    stays = keep[sources]
    dropped = weights.new_zeros(n_nodes).index_add_(0, target_node[rows[~stays]], weights[~stays])
    dropped = dropped.index_add(0, target_node, zeroed.to(weights.dtype))
    has_own = own != 0
    all_targets = torch.cat([target_node[rows[stays]], target_node[has_own]])
    all_sources = torch.cat([new_id[sources[stays]], first_own + own_rank[has_own]])
    all_weights = torch.cat([weights[stays], own[has_own].to(weights.dtype)])
    order = torch.argsort(all_targets * n_nodes + all_sources)
    counts = torch.bincount(all_targets, minlength=n_nodes)
    target_of_own = torch.empty(n_targets, dtype=torch.long)
    target_of_own[own_rank] = target_node
    return Graph(
        nodes=_nodes(local, logits, keep, target_of_own),
        indptr=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        sources=all_sources[order].to(torch.int32),
        weights=all_weights[order],
        dropped=dropped,
        meta=meta,
    )


def _nodes(local: LocalModel, logits: LogitTargets, keep: Tensor, target_of_own: Tensor) -> k.Nodes:
    """The node table: kept sources in layout order, own leaves, logits."""
    t = local.trace
    T, K = local.n_pos, len(logits.labels)
    dtype = t.embed.dtype
    positions = torch.arange(T)
    parts: list[k.Nodes] = []

    def add(
        kind: int, layer: int, pos: Tensor, feature: Tensor, activation: Tensor, preactivation: Tensor | None = None
    ) -> None:
        n = len(pos)
        nothing = torch.full((n,), torch.nan, dtype=dtype)
        parts.append(
            k.Nodes(
                kind=torch.full((n,), kind, dtype=torch.int8),
                layer=torch.full((n,), layer, dtype=torch.int32),
                pos=pos.to(torch.int32),
                feature=feature.long(),
                activation=activation.to(dtype).cpu(),
                preactivation=nothing if preactivation is None else preactivation.to(dtype).cpu(),
            )
        )

    ones, none = torch.ones(T), torch.full((T,), -1)
    add(k.EMBEDDING, -1, positions, t.tokens.cpu(), ones)
    if t.pos_embed is not None:
        add(k.POSITION, -1, positions, none, ones)
    for i, acts in sorted(local.acts.items()):
        add(k.FEATURE, i, acts.rows().cpu(), acts.indices.cpu(), acts.values, local.preactivations[i])
    for i, error in enumerate(local.errors):
        add(k.ERROR, i, positions, none, error.norm(dim=-1))
    for i in sorted(local.mlp_bias):
        add(k.BIAS, i, positions, torch.full((T,), k.BIAS_KINDS.index("mlp")), ones)
    for i in range(local.n_layers):
        add(k.BIAS, i, positions, torch.full((T,), k.BIAS_KINDS.index("attn")), ones)
    sources = _concat(parts)[keep]

    parts = []
    add(k.LOGIT, local.n_layers, torch.full((K,), logits.pos), logits.tokens.cpu(), logits.probabilities, logits.values)
    logit_nodes = parts[0]
    targets = torch.where(target_of_own < len(sources), target_of_own, target_of_own - len(target_of_own))
    both = _concat([sources, logit_nodes])
    own = k.Nodes(
        kind=torch.full_like(both.kind[targets], k.OWN),
        layer=both.layer[targets],
        pos=both.pos[targets],
        feature=target_of_own,
        activation=torch.ones(len(targets), dtype=dtype),
        preactivation=torch.full((len(targets),), torch.nan, dtype=dtype),
    )
    return _concat([sources, own, logit_nodes])


def _concat(parts: list[k.Nodes]) -> k.Nodes:
    return k.Nodes(*(torch.cat([getattr(p, f) for p in parts]) for f in k.NODE_FIELDS))
