"""Influence on the logits, and the scores made of it (METHODS 5.1; oracle O6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pullback.attribution.nodes import BIAS, EMBEDDING, ERROR, OWN, POSITION

if TYPE_CHECKING:
    from pullback.attribution.graph import Graph

EPS = 1e-10  # circuit-tracer's, for a row's sum; an explained token may itself be far less likely than this
TINY = 1e-300


def sum_rows(graph: Graph, values: Tensor) -> Tensor:
    """Sum of per-edge values into each target node, (n_nodes)."""
    return values.new_zeros(graph.n_nodes).index_add_(0, graph.rows(), values)


def normalized(graph: Graph, *, bias: bool) -> Tensor:
    """|edge| as a share of its target's input, (n_edges), float64.

    Without `bias`, the input that is shared out leaves bias, position and own leaves aside, as circuit-tracer does,
    which has no such nodes; their own entries keep the same denominator.
    """
    size = graph.weights.abs().double()
    counted = size if bias else size * counts_in_scores(graph)[graph.sources.long()]
    total = sum_rows(graph, counted)[graph.rows()]
    # A bias without company that counts has no share: it would be its size times 1 / EPS.
    return torch.where((counted <= 0) & (total <= EPS), 0.0, size / total.clamp(min=EPS))


def counts_in_scores(graph: Graph) -> Tensor:
    """Mask of the nodes that circuit-tracer knows: embeddings, features, errors, logits."""
    return ~graph.of_kind(BIAS, OWN, POSITION)


def flow(targets: Tensor, sources: Tensor, shares: Tensor, weight: Tensor) -> Tensor:
    """w + wA + wA^2 + ... without its first term: what flows from `weight` (n_nodes) back along edges (targets,
    sources, shares, each (n_edges)).

    Edges form no cycles, so the series ends; each term reaches one layer further down. Raises ValueError for NaN or
    infinite shares, with which it would not.
    """
    if not bool(torch.isfinite(shares).all()):
        raise ValueError("influence: edges of this graph are NaN or infinite, so it has none")
    total = torch.zeros_like(weight)
    front = weight
    while bool(front.any()):
        front = torch.zeros_like(front).index_add_(0, sources, front[targets] * shares)
        total += front
    return total


def propagate(graph: Graph, shares: Tensor, weight: Tensor) -> Tensor:
    """`flow` along the edges of a graph."""
    return flow(graph.rows(), graph.sources.long(), shares, weight)


def node_influence(graph: Graph, *, bias: bool = False) -> Tensor:
    """Influence of each node on the logits, weighted by their probabilities, (n_nodes)."""
    weight = graph.logit_weights.double()
    return propagate(graph, normalized(graph, bias=bias), weight).to(graph.weights.dtype)


def edge_influence(graph: Graph, *, bias: bool = False) -> Tensor:
    """Share of each edge times the influence of its target, (n_edges)."""
    shares = normalized(graph, bias=bias)
    weight = graph.logit_weights.double()
    return shares * (propagate(graph, shares, weight) + weight)[graph.rows()]


def scores(graph: Graph, *, bias: bool = False) -> tuple[float, float]:
    """(replacement, completeness)."""
    shares = normalized(graph, bias=bias)
    weight = graph.logit_weights.double()
    influence = propagate(graph, shares, weight)
    counted = torch.ones_like(influence, dtype=torch.bool) if bias else counts_in_scores(graph)
    error = graph.of_kind(ERROR)
    from_tokens = float(influence[graph.of_kind(EMBEDDING)].sum())
    from_errors = float(influence[error].sum())
    replacement = from_tokens / max(from_tokens + from_errors, TINY)
    error_share = sum_rows(graph, shares * error[graph.sources.long()])
    carried = (influence + weight) * counted
    completeness = float((carried * (1 - error_share)).sum() / carried.sum().clamp(min=TINY))
    return replacement, completeness


def smallest_set(values: Tensor, share: float) -> Tensor:
    """Mask of the fewest largest values that reach `share` of their sum; ties go to the lower index."""
    order = torch.argsort(values, descending=True, stable=True)
    cumulative = torch.cumsum(values[order].double(), 0)
    total = cumulative[-1] if len(values) else values.sum()
    n = int((cumulative < share * total).sum()) + 1
    mask = torch.zeros_like(values, dtype=torch.bool)
    mask[order[:n]] = True
    return mask


def cumulative(graph: Graph) -> Tensor:
    """Share of all influence that is carried by nodes at least as influential, (n_nodes): small is important."""
    raw, counted = node_influence(graph).double(), counts_in_scores(graph)
    influence = raw * counted
    order = torch.argsort(influence, descending=True, stable=True)
    share = torch.empty_like(influence)
    share[order] = torch.cumsum(influence[order], 0) / influence.sum().clamp(min=TINY)
    # Bias, position and own leaves do not compete: each ranks with the least counted node that matters as much.
    place = torch.searchsorted(influence[order].neg(), -raw[~counted], right=True) - 1
    share[~counted] = torch.where(raw[~counted] > 0, share[order[place.clamp(min=0)]], 1.0)
    return share.clamp(max=1.0)
