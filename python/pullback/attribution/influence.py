"""Influence on what a graph explains, and the scores made of it (METHODS 5.1; oracle O6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pullback.attribution.nodes import BIAS, EMBEDDING, ERRORS, OWN, POSITION
from pullback.ops.edges import RowSums, csr_flow, csr_sums

if TYPE_CHECKING:
    from pullback.attribution.graph import Graph

EPS = 1e-10  # circuit-tracer's, for a row's sum; an explained token may itself be far less likely than this
TINY = 1e-300


def normalized(graph: Graph, *, bias: bool) -> Tensor:
    """|edge| as a share of its target's input, (n_edges), float64.

    Without `bias`, the input that is shared out leaves bias, position and own leaves aside, as circuit-tracer does,
    which has no such nodes; their own entries keep the same denominator.
    """
    weights, scale = shares(graph, bias=bias)
    return torch.repeat_interleave(scale, graph.indptr.diff()).mul_(weights).abs_()


def shares(graph: Graph, *, bias: bool) -> tuple[Tensor, Tensor]:
    """The same as a product of edges (n_edges), whose sizes count, and a factor for each target, (n_nodes) float64."""
    return _shared(graph, *_counted(graph, bias))


def _shared(graph: Graph, counts: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """From the mask of the nodes that take a share, and what edges from them add up to at each target."""
    weights = graph.weights
    alone = (total <= EPS) & (graph.indptr.diff() > 0)
    if bool(alone.any()):
        # A bias without company that counts has no share: it would be its size times 1 / EPS.
        weights = weights.masked_fill(alone[graph.rows()] & ~counts[graph.sources], 0)
    return weights, 1 / total.clamp(min=EPS)


def _counted(graph: Graph, bias: bool) -> tuple[Tensor, Tensor]:
    """Mask of the nodes that take a share, and what edges from them add up to at each target, (n_nodes)."""
    sums = graph.row_sums
    if bias:
        return torch.ones(graph.n_nodes, dtype=torch.bool), sums.sizes
    return counts_in_scores(graph), sums.counted[0]


def counts_in_scores(graph: Graph) -> Tensor:
    """Mask of the nodes that circuit-tracer knows: embeddings, features, errors, targets."""
    return ~graph.of_kind(BIAS, OWN, POSITION)


def row_sums(graph: Graph) -> RowSums:
    """Of each node's input; what counts are the nodes that scores know, and errors."""
    masks = torch.stack([counts_in_scores(graph), graph.of_kind(*ERRORS)])
    return csr_sums(graph.indptr, graph.sources, graph.weights, masks, graph.runs)


class Flow:
    """w + wA + wA^2 + ... = w (I - A)^-1: weights (n_nodes), and what flows from them back along edges of shares A.

    Edges lead down, so what flows into a target is known once all rows of greater depths have been counted: one pass
    from the top down.

    Args:
        weights: of edges, (n_edges).
        scale: by which those into each target are multiplied, (n_nodes) float64.
        sizes: whether weights count without their signs.
    """

    def __init__(self, graph: Graph, weights: Tensor, scale: Tensor, *, sizes: bool = True) -> None:
        self.graph, self.weights, self.sizes = graph, weights, sizes
        self.targets = top_down(graph)
        self.scale = scale[self.targets]

    def __call__(self, weight: Tensor) -> Tensor:
        """Of float64. Raises ValueError for NaN or infinite shares."""
        total, graph = weight.clone(), self.graph
        edges = graph.indptr, graph.sources, self.scale, self.weights
        csr_flow(self.targets, self.targets, *edges, total, sizes=self.sizes, runs=graph.runs)
        return must_be_finite(total)


def top_down(graph: Graph) -> Tensor:
    """Nodes that edges lead into, by descending depth (`Nodes.depth`)."""
    targets = graph.indptr.diff().nonzero()[:, 0]
    return targets[torch.argsort(graph.nodes.depth[targets], descending=True, stable=True)]


def levels(graph: Graph) -> list[Tensor]:
    """The same, those of one depth together."""
    targets = top_down(graph)
    sizes = torch.unique_consecutive(graph.nodes.depth[targets], return_counts=True)[1]
    return list(targets.split(sizes.tolist()))


def must_be_finite(total: Tensor) -> Tensor:
    """The same. Raises ValueError for NaN or infinite influence."""
    if not bool(torch.isfinite(total).all()):
        raise ValueError("influence: edges of this graph are NaN or infinite, so it has none")
    return total


def node_influence(graph: Graph, weight: Tensor, *, bias: bool = False) -> Tensor:
    """Influence of each node on what is weighted, (n_nodes)."""
    weight = weight.double()
    return (Flow(graph, *shares(graph, bias=bias))(weight) - weight).to(graph.weights.dtype)


def influence_on(graph: Graph, targets: Tensor, *, bias: bool = False) -> Tensor:
    """Influence of each node on each of some targets, (m, n_nodes)."""
    flow = Flow(graph, *shares(graph, bias=bias))
    weights = torch.zeros(len(targets), graph.n_nodes, dtype=torch.float64).scatter_(1, targets[:, None], 1.0)
    for weight in weights:
        weight.copy_(flow(weight) - weight)
    return weights.to(graph.weights.dtype)


def edge_influence(graph: Graph, *, bias: bool = False) -> Tensor:
    """Share of each edge times the influence of its target, (n_edges)."""
    weights, scale = shares(graph, bias=bias)
    reached = Flow(graph, weights, scale)(graph.target_weights.double()) * scale
    return torch.repeat_interleave(reached, graph.indptr.diff()).mul_(weights.abs())


def scores(graph: Graph, *, bias: bool = False) -> tuple[float, float]:
    """(replacement, completeness)."""
    counted, total = _counted(graph, bias)
    weights, scale = _shared(graph, counted, total)
    weight = graph.target_weights.double()
    reached = Flow(graph, weights, scale)(weight)
    influence = reached - weight
    from_tokens = float(influence[graph.of_kind(EMBEDDING)].sum())
    from_errors = float(influence[graph.of_kind(*ERRORS)].sum())
    replacement = from_tokens / max(from_tokens + from_errors, TINY)
    error_share = graph.row_sums.counted[1] * scale
    carried = reached * counted
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
