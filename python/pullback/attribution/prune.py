"""Pruning by influence, as circuit-tracer prunes (METHODS 5.1), on CSR."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pullback.attribution import influence as inf
from pullback.attribution.nodes import EMBEDDING, FEATURES

if TYPE_CHECKING:
    from pullback.attribution.graph import Graph


def prune(graph: Graph, node_threshold: float, edge_threshold: float) -> Graph:
    """Keep the nodes that carry `node_threshold` of influence and, of their edges, those that carry `edge_threshold`;
    then only features and errors that still lead somewhere, and features that still come from somewhere."""
    for name, value in (("node_threshold", node_threshold), ("edge_threshold", edge_threshold)):
        if not 0 <= value <= 1:
            raise ValueError(f"prune: {name} must lie in [0, 1], got {value}")
    graph = _remembering(graph)
    node_threshold, edge_threshold = float(node_threshold), float(edge_threshold)  # files carry them
    pruning = {"node_threshold": node_threshold, "edge_threshold": edge_threshold}
    graph = replace(graph, meta={**graph.meta, "pruning_settings": pruning})
    small = graph.subgraph(_kept_nodes(graph, node_threshold))
    kept_edges = _kept_edges(small, edge_threshold)
    alive = _connected(small, kept_edges)
    return small.subgraph(alive, kept_edges)


def _remembering(graph: Graph) -> Graph:
    """The graph with its own scores and shares written down, for the parts of it to carry."""
    if graph.cumulative is not None:
        return graph
    return replace(graph, cumulative=inf.cumulative(graph), meta={**graph.meta, "scores": list(graph.scores())})


def _kept(values: Tensor, competes: Tensor, threshold: float) -> Tensor:
    """The smallest set among those that compete; of the others, what matters as much as its least member."""
    keep = competes & (values > 0)
    if threshold < 1:  # at 1 nothing goes, not even what is too small to show in a sum
        keep &= inf.smallest_set(values * competes, threshold)
    floor = values[keep].min() if bool(keep.any()) else torch.inf
    return keep | (~competes & (values >= floor) & (values > 0))


def _kept_nodes(graph: Graph, threshold: float) -> Tensor:
    """Bias, position and own leaves do not compete: circuit-tracer has none."""
    keep = _kept(graph.influence(), inf.counts_in_scores(graph), threshold)
    return keep | graph.of_kind(EMBEDDING) | graph.explained


def _kept_edges(graph: Graph, threshold: float) -> Tensor:
    return _kept(inf.edge_influence(graph), inf.counts_in_scores(graph)[graph.sources.long()], threshold)


def _connected(graph: Graph, kept_edges: Tensor) -> Tensor:
    """What remains once features and errors without outgoing edges, and features without incoming ones, are gone."""
    rows, sources = graph.rows(), graph.sources.long()
    feature = graph.of_kind(*FEATURES)
    always = graph.of_kind(EMBEDDING) | graph.explained
    alive = torch.ones(graph.n_nodes, dtype=torch.bool)
    while True:
        live = kept_edges & alive[rows] & alive[sources]
        has_out = torch.zeros_like(alive).index_fill_(0, sources[live], True)
        has_in = torch.zeros_like(alive).index_fill_(0, rows[live], True)
        now = alive & (always | (has_out & (has_in | ~feature)))
        if bool((now == alive).all()):
            return alive
        alive = now
