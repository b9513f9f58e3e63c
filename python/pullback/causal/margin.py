"""What a causal test measures: one token's logit against another's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.attribution import Graph
from pullback.attribution.nodes import LOGIT


@dataclass(frozen=True)
class Margin:
    """logit[target] - logit[other] at the last position; without `other`, less the mean of all logits."""

    target: int
    other: int | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Float[Tensor, '... T V'] -> Float[Tensor, '...']"""
        last = logits[..., -1, :]
        return last[..., self.target] - (last.mean(-1) if self.other is None else last[..., self.other])

    def weights(self, graph: Graph) -> Tensor:
        """The margin as a sum of the graph's logit nodes, whose values are logits less their mean: (n_nodes).

        Raises ValueError where the graph does not explain one of the tokens.
        """
        weights = graph.weights.new_zeros(graph.n_nodes)
        logits = _last_logits(graph)
        for token, sign in ((self.target, 1.0), (self.other, -1.0)):
            if token is None:
                continue
            node = (logits & (graph.nodes.feature == token)).nonzero()[:, 0]
            if not len(node):
                raise ValueError(
                    f"margin: the graph explains the tokens {graph.nodes.feature[logits].tolist()}, not {token}; "
                    "name it in attribution_targets"
                )
            weights[node] += sign
        return weights


def margin_of(graph: Graph) -> Margin:
    """Between the two likeliest tokens that the graph explains at the last position; of one alone, against the mean of
    all. Raises ValueError where there is none."""
    logits = _last_logits(graph).nonzero()[:, 0]
    if not len(logits):
        raise ValueError(
            "margin: this graph explains no logit of the last position; give a margin of a graph that does"
        )
    best = logits[torch.argsort(graph.nodes.activation[logits], descending=True, stable=True)]
    tokens = graph.nodes.feature[best[:2]].tolist()
    return Margin(*tokens)


def _last_logits(graph: Graph) -> Tensor:
    """Which nodes are logits of the last position, (n_nodes) bool."""
    return graph.of_kind(LOGIT) & (graph.nodes.pos == len(graph.meta["tokens"]) - 1)
