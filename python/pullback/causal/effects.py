"""What a graph says would happen: total effects on the answer, and what a change of one feature changes."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from pullback.attribution import Graph
from pullback.attribution.effects import effects
from pullback.attribution.influence import levels
from pullback.attribution.nodes import DIRECTION, FEATURES, LOGIT
from pullback.causal.margin import Margin, margin_of


def derivatives(graph: Graph, holding: Collection[int] = ()) -> Tensor:
    """Of each edge, (n_edges): change of the target per change of what the source's own input adds up to.

    An edge weighs a_s d h_t / d a_s, and with its mask frozen an active feature changes as its input does: one per one.
    An edge out of a feature of a layer in `holding` passes nothing on. Edges from leaves keep their weight.
    """
    source = graph.sources.long()
    feature = graph.of_kind(*FEATURES)[source]
    held = torch.isin(graph.nodes.layer[source].long(), torch.tensor(sorted(holding), dtype=torch.long))
    return torch.where(feature & held, 0, graph.weights / torch.where(feature, graph.nodes.activation[source], 1))


def total_effects(graph: Graph, margin: Margin | None = None) -> Tensor:
    """Signed effect of each node on the margin along all paths, (n_nodes), patterns, norms and feature masks frozen
    (METHODS 5.1): the margin would lose so much without the node.

    The sum over leaves and what was dropped is the margin itself. `margin` defaults to the two likeliest answers.
    """
    weights = (margin_of(graph) if margin is None else margin).weights(graph)
    logits = weights.nonzero()[:, 0]
    return (weights[logits].double() @ effects(graph, logits).total).to(graph.weights.dtype)


def predicted(graph: Graph, node: int, change: float, holding: Collection[int] = ()) -> Tensor:
    """Change of every node's pre-activation, (n_nodes), where the activation of one feature node changes by `change`
    (which stands at the node itself).

    Layers in `holding` are held: their features write what they wrote before, all but the changed one.
    """
    slopes = derivatives(graph, holding)
    from_node = graph.sources == node
    slopes[from_node] = graph.weights[from_node] / graph.nodes.activation[node]
    moved = graph.weights.new_zeros(graph.n_nodes)
    moved[node] = change
    counts = graph.indptr.diff()
    for nodes in reversed(levels(graph)):  # from the lowest layer up: edges lead up
        own = counts[nodes]
        into = torch.repeat_interleave(nodes, own)
        first = graph.indptr[nodes] - (own.cumsum(0) - own)
        edges = torch.repeat_interleave(first, own) + torch.arange(len(into))
        moved.index_add_(0, into, slopes[edges] * moved[graph.sources[edges]])
    return moved


def recovery(graph: Graph, keep: Tensor, margin: Margin | None = None) -> float:
    """Share of the margin that leaves contribute through kept nodes alone (Ge et al. 2024): keep (n_nodes) bool.

    No model is run: it is what the edges say, and 1 where a whole graph is kept.
    """
    margin = margin_of(graph) if margin is None else margin
    part = graph.subgraph(keep)
    leaves = ~part.of_kind(*FEATURES, LOGIT, DIRECTION)
    whole = margin.weights(graph) @ torch.where(graph.of_kind(LOGIT), graph.nodes.preactivation, 0)
    return float(total_effects(part, margin)[leaves].sum() / whole)
