"""A graph as one dense matrix in circuit-tracer's order: features, errors, tokens, logits; rows are targets."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pullback.attribution import nodes as k
from pullback.attribution.graph import Graph


class DenseGraph(NamedTuple):
    """N = M + n_layers * T + T + K nodes: M features by (layer, pos, id), errors by (layer, pos), tokens, K logits.

    circuit-tracer has no nodes for biases, positions or a target's own constant, so neither has this.
    """

    adjacency: Tensor  # (N, N), row = target
    features: Tensor  # (M, 3) int64: layer, pos, feature id
    activations: Tensor  # (M)
    tokens: Tensor  # (T) int64
    logit_tokens: Tensor  # (K) int64
    logit_probabilities: Tensor  # (K)
    n_layers: int

    @property
    def spans(self) -> dict[str, slice]:
        """Where features, errors, tokens and logits stand."""
        M, T, K = len(self.features), len(self.tokens), len(self.logit_tokens)
        ends = [0, M, M + self.n_layers * T, M + (self.n_layers + 1) * T, M + (self.n_layers + 1) * T + K]
        names = ("features", "errors", "tokens", "logits")
        return {name: slice(*ends[i : i + 2]) for i, name in enumerate(names)}


def dense(graph: Graph) -> DenseGraph:
    """The features, errors, tokens and logits of a graph, and the edges among them. Takes 4 N^2 bytes in float32.

    Raises ValueError for a graph that explains anything but logits at the last position.
    """
    n = graph.nodes
    L, T = int(graph.meta["n_layers"]), len(graph.meta["tokens"])
    if bool((graph.explained & ~(graph.of_kind(k.LOGIT) & (n.pos == T - 1))).any()):
        raise ValueError(
            "circuit-tracer explains logits at the last position; this graph explains something else, for which it has "
            "no place"
        )
    if bool(graph.of_kind(k.ATTENTION_FEATURE).any()):
        raise ValueError("circuit-tracer has no place for features of attention; make the graph without attention_saes")
    features = _places(graph, k.FEATURE)
    by_place = (n.layer[features].long() * T + n.pos[features]) * (int(n.feature.max()) + 1) + n.feature[features]
    features = features[torch.argsort(by_place)]
    errors, tokens, logits = (_places(graph, kind) for kind in (k.ERROR, k.EMBEDDING, k.LOGIT))
    M, K = len(features), len(logits)
    at = torch.full((graph.n_nodes,), -1)
    at[features] = torch.arange(M)
    at[errors] = M + n.layer[errors].long() * T + n.pos[errors]
    at[tokens] = M + L * T + n.pos[tokens].long()
    at[logits] = M + (L + 1) * T + torch.arange(K)
    N = M + (L + 1) * T + K
    rows, sources = at[graph.rows()], at[graph.sources.long()]
    known = (rows >= 0) & (sources >= 0)
    adjacency = graph.weights.new_zeros(N, N)
    adjacency[rows[known], sources[known]] = graph.weights[known]
    return DenseGraph(
        adjacency=adjacency,
        features=torch.stack([n.layer[features].long(), n.pos[features].long(), n.feature[features]], 1),
        activations=n.activation[features],
        tokens=torch.tensor(graph.meta["tokens"]),
        logit_tokens=n.feature[logits],
        logit_probabilities=graph.target_weights[logits],
        n_layers=L,
    )


def from_dense(given: DenseGraph, meta: dict[str, Any]) -> Graph:
    """The graph of a dense matrix. Such a matrix does not say what pre-activations its rows should sum to: they are
    NaN, and so is `check()`."""
    spans, (L, T) = given.spans, (given.n_layers, len(given.tokens))
    order = torch.cat(
        [torch.arange(given.adjacency.shape[0])[spans[s]] for s in ("tokens", "features", "errors", "logits")]
    )
    matrix = given.adjacency[order][:, order]
    positions, K = torch.arange(T), len(given.logit_tokens)
    M = len(given.features)
    layer, pos, feature = given.features.unbind(1)
    columns = {
        "kind": _runs([(k.EMBEDDING, T), (k.FEATURE, M), (k.ERROR, L * T), (k.LOGIT, K)]).to(torch.int8),
        "layer": torch.cat([_runs([(-1, T)]), layer, torch.arange(L).repeat_interleave(T), _runs([(L, K)])]).int(),
        "pos": torch.cat([positions, pos, positions.repeat(L), _runs([(T - 1, K)])]).int(),
        "feature": torch.cat([given.tokens, feature, _runs([(-1, L * T)]), given.logit_tokens]),
        "activation": torch.cat(
            [torch.ones(T), given.activations, torch.full((L * T,), torch.nan), given.logit_probabilities]
        ).to(matrix.dtype),
        "preactivation": torch.full((len(order),), torch.nan, dtype=matrix.dtype),
    }
    rows, sources = matrix.nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=len(order))
    return Graph(
        nodes=k.Nodes(**columns),
        indptr=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        sources=sources.int(),
        weights=matrix[rows, sources],
        dropped=matrix.new_zeros(len(order)),
        meta=meta | {"n_layers": L, "tokens": given.tokens.tolist()},
    )


def _places(graph: Graph, kind: int) -> Tensor:
    return graph.of_kind(kind).nonzero()[:, 0]


def _runs(values: list[tuple[int, int]]) -> Tensor:
    """Each value as often as said."""
    return torch.cat([torch.full((times,), value) for value, times in values])
