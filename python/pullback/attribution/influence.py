"""Influence on what a graph explains, and the scores made of it (METHODS 5.1; oracle O6)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

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
    """Mask of the nodes that circuit-tracer knows: embeddings, features, errors, targets."""
    return ~graph.of_kind(BIAS, OWN, POSITION)


class Run(NamedTuple):
    """Rows whose targets are of one layer, in CSR."""

    targets: Tensor  # (r) nodes
    counts: Tensor  # (r), edges into each
    sources: Tensor  # (e) nodes
    scale: Tensor  # (r): scale x size is an edge's share of its target
    sizes: Tensor  # (e)


def flow(weight: Tensor, runs: Iterable[Run]) -> Tensor:
    """w + wA + wA^2 + ... = w (I - A)^-1: `weight` (n_nodes), and what flows from it back along edges of shares A.

    Edges lead down, so what flows into a target is known once all rows of higher layers have been counted: one pass
    over runs from the highest layer down. Raises ValueError for NaN or infinite shares.
    """
    total = weight.clone()
    for run in runs:
        into = total[run.targets] * run.scale
        total.index_add_(0, run.sources, torch.repeat_interleave(into, run.counts).mul_(run.sizes))
    if not bool(torch.isfinite(total).all()):
        raise ValueError("influence: edges of this graph are NaN or infinite, so it has none")
    return total


def runs_of(graph: Graph, sizes: Tensor, scale: Tensor | None = None) -> list[Run]:
    """The rows of a graph from the highest layer down, with sizes of edges (n_edges), scaled by target (n_nodes)."""
    counts = graph.indptr.diff()
    targets = counts.nonzero()[:, 0]
    counts = counts[targets]
    scales = torch.ones(len(targets), dtype=torch.float64) if scale is None else scale[targets]
    layers, lengths = torch.unique_consecutive(graph.nodes.layer[targets], return_counts=True)
    lengths = lengths.tolist()
    edges = [int(part.sum()) for part in counts.split(lengths)]
    columns = (
        targets.split(lengths),
        counts.split(lengths),
        graph.sources.split(edges),
        scales.split(lengths),
        sizes.split(edges),
    )
    runs = [Run(*parts) for parts in zip(*columns, strict=True)]
    return [runs[i] for i in torch.argsort(layers, descending=True, stable=True).tolist()]


def propagate(graph: Graph, shares: Tensor, weight: Tensor) -> Tensor:
    """What flows from `weight` (n_nodes) back along a graph's edges, without the weight itself."""
    return flow(weight, runs_of(graph, shares)) - weight


def node_influence(graph: Graph, weight: Tensor, *, bias: bool = False) -> Tensor:
    """Influence of each node on what is weighted, (n_nodes)."""
    return propagate(graph, normalized(graph, bias=bias), weight.double()).to(graph.weights.dtype)


def influence_on(graph: Graph, targets: Tensor, *, bias: bool = False) -> Tensor:
    """Influence of each node on each of some targets, (m, n_nodes)."""
    runs = runs_of(graph, normalized(graph, bias=bias))
    weights = torch.zeros(len(targets), graph.n_nodes, dtype=torch.float64).scatter_(1, targets[:, None], 1.0)
    for weight in weights:
        weight.copy_(flow(weight, runs) - weight)
    return weights.to(graph.weights.dtype)


def edge_influence(graph: Graph, *, bias: bool = False) -> Tensor:
    """Share of each edge times the influence of its target, (n_edges)."""
    shares = normalized(graph, bias=bias)
    weight = graph.target_weights.double()
    return shares * (propagate(graph, shares, weight) + weight)[graph.rows()]


def scores(graph: Graph, *, bias: bool = False) -> tuple[float, float]:
    """(replacement, completeness)."""
    shares = normalized(graph, bias=bias)
    weight = graph.target_weights.double()
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
    raw, counted = graph.influence().double(), counts_in_scores(graph)
    influence = raw * counted
    order = torch.argsort(influence, descending=True, stable=True)
    share = torch.empty_like(influence)
    share[order] = torch.cumsum(influence[order], 0) / influence.sum().clamp(min=TINY)
    # Bias, position and own leaves do not compete: each ranks with the least counted node that matters as much.
    place = torch.searchsorted(influence[order].neg(), -raw[~counted], right=True) - 1
    share[~counted] = torch.where(raw[~counted] > 0, share[order[place.clamp(min=0)]], 1.0)
    return share.clamp(max=1.0)
