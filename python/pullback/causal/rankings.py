"""Rankings of a graph's features and errors by what the graph itself says of them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from pullback.attribution import Graph
from pullback.attribution.effects import values
from pullback.attribution.hierarchical import entry_thresholds
from pullback.causal.effects import total_effects
from pullback.causal.margin import Margin, margin_of
from pullback.causal.nodes import NodeSet


class Rankings(NamedTuple):
    """Scores of the same nodes for two orders, larger first: by what raises the margin, and by what moves it at all."""

    signed: Tensor  # (n)
    absolute: Tensor  # (n)

    @staticmethod
    def of(scores: Tensor | Rankings) -> Rankings:
        """Of scores with a sign, their sizes are the other order."""
        return scores if isinstance(scores, Rankings) else Rankings(scores, scores.abs())


def graph_scores(graph: Graph, margin: Margin | None = None) -> Tensor:
    """Total effects of the nodes of `NodeSet.of(graph)` on the margin, (n)."""
    return total_effects(graph, margin)[NodeSet.mask(graph)]


def hierarchical_scores(graph: Graph, margin: Margin | None = None) -> Rankings:
    """Of the nodes of `NodeSet.of(graph)`, the thresholds at which hierarchical attribution to the margin keeps them
    (Ge et al. 2024).

    Thresholds have no sign, and gates that compare attributions let other paths through than gates that compare their
    sizes: each order has passes of its own.
    """
    margin = margin_of(graph) if margin is None else margin
    start = margin.weights(graph).double() * values(graph)
    return Rankings(*(entry_thresholds(graph, start, mode)[NodeSet.mask(graph)] for mode in ("signed", "abs")))
