"""Faithfulness and completeness of growing circuits, for one or several rankings of the same nodes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pullback._util.atomic import atomic_save
from pullback.attribution import Graph
from pullback.causal import mib
from pullback.causal.ablation import Ablation
from pullback.causal.effects import recovery
from pullback.causal.faithful import Faithfulness
from pullback.causal.margin import Margin, margin_of
from pullback.causal.nodes import NodeSet
from pullback.causal.rankings import Rankings, graph_scores
from pullback.transcoders import LayeredDictionary


@dataclass(frozen=True)
class Curve:
    """Circuits of the best nodes of one ranking: share of all nodes that are ranked, their number, and what they do.

    faithfulness: of the circuit alone, 1 like the whole model, 0 like none of it. completeness: of everything but the
    circuit; near 0 where nothing outside of it can give the answer, too. recovery: what the graph says of it.
    """

    sizes: list[float]
    n_nodes: list[int]
    faithfulness: list[float]
    completeness: list[float]
    recovery: list[float]


class Areas(NamedTuple):
    """Of one ranking, as MIB has them: `cpr` with nodes by signed score, `cmd` by its absolute value."""

    cpr: float
    cmd: float


@dataclass(frozen=True)
class Curves:
    """{ranking: {"signed" or "absolute": curve}}, and what was measured: the margin of the model and with no node."""

    prompt: str
    target: int
    other: int | None
    ablation: str
    errors: str
    full: float
    empty: float
    curves: dict[str, dict[str, Curve]]

    def areas(self) -> dict[str, Areas]:
        return {
            name: Areas(
                mib.cpr(orders["signed"].sizes, orders["signed"].faithfulness),
                mib.cmd(orders["absolute"].sizes, orders["absolute"].faithfulness),
            )
            for name, orders in self.curves.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and for `pullback.viz.curves.draw`."""
        return {**asdict(self), "areas": {name: areas._asdict() for name, areas in self.areas().items()}}

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Written atomically."""
        atomic_save(path, json.dumps(self.to_dict(), indent=2))


def faithfulness_curves(
    model: Any,
    sets: LayeredDictionary,
    graph: Graph,
    scores: Mapping[str, Tensor | Rankings] | None = None,
    *,
    ablation: Ablation | None = None,
    errors: str = "nodes",
    margin: Margin | None = None,
    sizes: Sequence[float] = mib.SIZES,
    freeze: str | None = "attention",
    attention_saes: LayeredDictionary | None = None,
    strict: bool = True,
) -> Curves:
    """Keep the best nodes of a graph, ablate the others, and see how much of the margin is left; and the reverse.

    Args:
        scores: {name: (n)}, of the nodes of `NodeSet.of(graph)`, larger is better; `node_scores(...).scores` fits, and
            so does `hierarchical_scores`, which has an order of its own for sizes. None: the graph's total effects on
            the margin.
        ablation: what other nodes become; None: zero.
        errors: "nodes": they are ranked, kept and ablated like features; "kept": only features are, and every circuit
            has all errors; "dropped": none has any, so that all features together need not come to 1.
        margin: what is measured; by default between the two likeliest tokens of the graph.
        sizes: shares of nodes, ascending.
        freeze: "attention" or None.
        attention_saes: those that the graph was made with.

    Raises:
        ValueError: scores or an ablation that do not fit the graph, scores that are NaN, sizes outside (0, 1], another
            choice of errors, a margin that does not depend on the nodes.
    """
    sizes = [float(size) for size in sizes]
    margin = margin_of(graph) if margin is None else margin
    faithful = Faithfulness(
        model,
        sets,
        graph,
        margin,
        errors=errors,
        ablation=ablation,
        freeze=freeze,
        attention_saes=attention_saes,
        strict=strict,
    )
    n = len(faithful.candidates)
    scores = {"graph": graph_scores(graph, margin)} if scores is None else scores
    if not isinstance(scores, Mapping):
        raise ValueError(
            "faithfulness: scores are named, {name: Float[Tensor, 'n']}, one number for each feature and error of the "
            f"graph, got {type(scores).__name__}"
        )
    rankings = {name: Rankings.of(given) for name, given in scores.items()}
    if wrong := {name: list(s.shape) for name, r in rankings.items() for s in r if s.shape != (n,)}:
        raise ValueError(
            f"faithfulness: scores must be [{n}], one for each feature and error of the graph, got {wrong}"
        )
    if unranked := [name for name, r in rankings.items() if any(bool(s.isnan().any()) for s in r)]:
        raise ValueError(f"faithfulness: some scores of {', '.join(unranked)} are NaN, which no order has a place for")
    if not all(0 < size <= 1 for size in sizes):
        raise ValueError(f"faithfulness: sizes are shares of the nodes, in (0, 1], got {sizes}")
    candidates = faithful.candidates.nonzero()[:, 0]
    counts = [int(size * len(candidates) + 1e-9) for size in sizes]  # 0.29 * 100 is less than 29

    def recovered(chosen: Tensor) -> float:
        here = NodeSet.mask(graph)
        return recovery(graph, (~here).masked_scatter(here, faithful.nodes(chosen)), margin)

    def curve(ranking: Tensor) -> Curve:
        order = candidates[torch.argsort(ranking[candidates], descending=True, stable=True)]
        circuits = [torch.zeros(n, dtype=torch.bool).index_fill(0, order[:count], True) for count in counts]
        return Curve(
            sizes,
            counts,
            [faithful(circuit) for circuit in circuits],
            [faithful(~circuit) for circuit in circuits],
            [recovered(circuit) for circuit in circuits],
        )

    return Curves(
        graph.meta["prompt"],
        margin.target,
        margin.other,
        faithful.runner.ablation.kind,
        errors,
        faithful.full,
        faithful.empty,
        {name: {"signed": curve(r.signed), "absolute": curve(r.absolute)} for name, r in rankings.items()},
    )
