"""From rows of edges to a `Graph`: node table, CSR, dropped mass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback.attribution import nodes as k
from pullback.attribution.explained import Explained
from pullback.attribution.graph import Graph
from pullback.attribution.rows import EdgeRows


def assemble(
    all_sources: k.Nodes, explained: Explained, edges: EdgeRows, chosen: Tensor, meta: dict[str, Any]
) -> Graph:
    """The graph on the chosen features (places, ascending); what other features contribute becomes dropped mass. Takes
    the rows out of `edges`, so that their memory is free for what follows."""
    layout = edges.layout
    first, K = layout.all_features.start, len(explained)
    keep = torch.ones(layout.n_sources, dtype=torch.bool)
    keep[layout.all_features] = False
    keep[first + chosen] = True
    new_id = torch.cumsum(keep, 0) - 1
    ids = torch.where(keep, new_id, -1).int()
    n_sources = int(keep.sum())
    n_targets = len(chosen) + K
    n_nodes = n_sources + n_targets + K

    # Own leaves stand in target order: features as they stand, then what is explained besides: the last nodes.
    names, own = (torch.cat([getattr(block, name) for block in edges.blocks]) for name in ("names", "own"))
    appended = names < 0
    target_node = torch.where(appended, n_nodes - K + (-1 - names), new_id[(first + names).clamp(min=0)])
    own_rank = torch.where(appended, len(chosen) + (-1 - names), torch.searchsorted(chosen, names.clamp(min=0)))
    target_of_own = torch.empty(n_targets, dtype=torch.long)
    target_of_own[own_rank] = target_node

    kept = torch.cat([block.edges.counts(ids) for block in edges.blocks])
    has_own = own != 0
    counts = torch.zeros(n_nodes, dtype=torch.long).index_add_(0, target_node, kept + has_own)
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    # The sources of a row ascend, and its own leaf stands behind them all.
    begin = indptr[target_node]
    sources = torch.empty(int(indptr[-1]), dtype=torch.int32)
    weights = torch.empty(len(sources), dtype=all_sources.activation.dtype)
    at_own = (begin + kept)[has_own]
    sources[at_own], weights[at_own] = (n_sources + own_rank)[has_own].int(), own[has_own].to(weights.dtype)
    dropped = torch.zeros(n_nodes, dtype=torch.float64)
    done = 0
    while edges.blocks:
        block = edges.blocks.pop(0)
        rows = slice(done, done := done + len(block.names))
        lost = block.edges.pack(ids, begin[rows], kept[rows], sources, weights)
        dropped[target_node[rows]] = lost + block.dropped
    target_weights = weights.new_zeros(n_nodes)
    target_weights[n_nodes - K :] = explained.weights
    target_weights[new_id[first + explained.features]] = explained.feature_weights
    return Graph(
        nodes=_nodes(all_sources, explained, keep, target_of_own),
        indptr=indptr,
        sources=sources,
        weights=weights,
        dropped=dropped.to(weights.dtype),
        given_weights=target_weights,
        meta=meta,
    )


def _nodes(sources: k.Nodes, explained: Explained, keep: Tensor, target_of_own: Tensor) -> k.Nodes:
    """The node table: kept sources in layout order, own leaves, what is explained besides."""
    if not bool(keep.all()):
        sources = sources[keep]
    targets = torch.where(target_of_own < len(sources), target_of_own, target_of_own - len(target_of_own))
    both = _concat([sources, explained.nodes])
    own = k.Nodes(
        kind=torch.full_like(targets, k.OWN, dtype=torch.int8),
        layer=both.layer[targets],
        pos=both.pos[targets],
        feature=target_of_own,
        activation=torch.ones_like(targets, dtype=both.activation.dtype),
        preactivation=torch.full_like(targets, torch.nan, dtype=both.activation.dtype),
    )
    return _concat([sources, own, explained.nodes])


def _concat(parts: list[k.Nodes]) -> k.Nodes:
    return k.Nodes(*(torch.cat([getattr(p, f) for p in parts]) for f in k.NODE_FIELDS))
