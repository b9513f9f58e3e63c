"""What a causal test measures: one token's logit against another's."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback.attribution import Graph
from pullback.attribution.nodes import LOGIT


@dataclass(frozen=True)
class Margin:
    """logit[target] - logit[other] at the last position; without `other`, less the mean of all logits.

    Raises ValueError for tokens that are no ids.
    """

    target: int
    other: int | None = None

    def __post_init__(self) -> None:
        for name in ("target", "other"):
            object.__setattr__(self, name, _token(getattr(self, name), name))

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


def _token(given: Any, name: str) -> int | None:
    """A plain number, whether it came as such, from numpy or as a tensor: files carry margins."""
    if given is None and name == "other":
        return None
    try:
        token = -1 if given is None else operator.index(given)
    except TypeError:
        token = -1
    if token < 0:
        raise ValueError(f"margin: {name} must be the id of a token, a whole number from 0 on, got {given!r}")
    return token


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
