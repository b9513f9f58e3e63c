"""From rows of edges to a `Graph`: node table, CSR, dropped mass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback.attribution import nodes as k
from pullback.attribution.explained import Explained
from pullback.attribution.graph import Graph
from pullback.attribution.local import LocalModel
from pullback.attribution.rows import EdgeRows


def assemble(local: LocalModel, explained: Explained, edges: EdgeRows, chosen: Tensor, meta: dict[str, Any]) -> Graph:
    """The graph on the chosen features (places, ascending); what other features contribute becomes dropped mass."""
    joined = edges.joined()
    names, own, weights, sources = joined.names, joined.own, joined.weights, joined.sources.long()
    layout = local.layout
    first = layout.all_features.start
    keep = torch.ones(layout.n_sources, dtype=torch.bool)
    keep[layout.all_features] = False
    keep[first + chosen] = True
    new_id = torch.cumsum(keep, 0) - 1
    n_sources, K = int(keep.sum()), len(explained)
    n_targets = len(chosen) + K
    n_nodes = n_sources + n_targets + K

    # Own leaves stand in target order: features as they stand, then what is explained besides: the last nodes.
    appended = names < 0
    target_node = torch.where(appended, n_nodes - K + (-1 - names), new_id[(first + names).clamp(min=0)])
    own_rank = torch.where(appended, len(chosen) + (-1 - names), torch.searchsorted(chosen, names.clamp(min=0)))
    target_of_own = torch.empty(n_targets, dtype=torch.long)
    target_of_own[own_rank] = target_node

    stays, rows = keep[sources], joined.rows()
    lost = weights.new_zeros(len(names)).index_add_(0, rows[~stays], weights[~stays])
    kept = torch.bincount(rows[stays], minlength=len(names))
    has_own = own != 0
    counts = torch.zeros(n_nodes, dtype=torch.long).index_add_(0, target_node, kept + has_own)
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    # The sources of a row ascend already, and its own leaf stands behind them all: rows move as they are.
    begin = indptr[target_node]
    at = torch.repeat_interleave(begin - (kept.cumsum(0) - kept), kept) + torch.arange(int(kept.sum()))
    all_sources = torch.empty(int(indptr[-1]), dtype=torch.int32)
    all_weights = weights.new_empty(len(all_sources))
    all_sources[at], all_weights[at] = new_id.int()[sources[stays]], weights[stays]
    at_own = (begin + kept)[has_own]
    all_sources[at_own], all_weights[at_own] = (n_sources + own_rank)[has_own].int(), own[has_own].to(weights.dtype)
    target_weights = weights.new_zeros(n_nodes)
    target_weights[n_nodes - K :] = explained.weights
    target_weights[new_id[first + explained.features]] = explained.feature_weights
    return Graph(
        nodes=_nodes(local, explained, keep, target_of_own),
        indptr=indptr,
        sources=all_sources,
        weights=all_weights,
        dropped=weights.new_zeros(n_nodes).index_add_(0, target_node, lost + joined.dropped.to(weights.dtype)),
        given_weights=target_weights,
        meta=meta,
    )


def _nodes(local: LocalModel, explained: Explained, keep: Tensor, target_of_own: Tensor) -> k.Nodes:
    """The node table: kept sources in layout order, own leaves, what is explained besides."""
    t, T = local.trace, local.n_pos
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
    targets = torch.where(target_of_own < len(sources), target_of_own, target_of_own - len(target_of_own))
    both = _concat([sources, explained.nodes])
    own = k.Nodes(
        kind=torch.full_like(both.kind[targets], k.OWN),
        layer=both.layer[targets],
        pos=both.pos[targets],
        feature=target_of_own,
        activation=torch.ones(len(targets), dtype=dtype),
        preactivation=torch.full((len(targets),), torch.nan, dtype=dtype),
    )
    return _concat([sources, own, explained.nodes])


def _concat(parts: list[k.Nodes]) -> k.Nodes:
    return k.Nodes(*(torch.cat([getattr(p, f) for p in parts]) for f in k.NODE_FIELDS))
