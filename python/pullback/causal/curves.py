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
from pullback.attribution.effects import values
from pullback.attribution.hierarchical import entry_thresholds
from pullback.causal import mib
from pullback.causal.ablation import Ablation
from pullback.causal.circuit import CircuitRunner
from pullback.causal.effects import recovery, total_effects
from pullback.causal.margin import Margin, margin_of
from pullback.causal.nodes import NodeSet
from pullback.transcoders import LayeredDictionary


@dataclass(frozen=True)
class Curve:
    """Circuits of the best nodes of one ranking: share of all nodes, their number, and what they do.

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
    """{ranking: {"signed" or "absolute": curve}}, and what was measured: the margin with every node and with none."""

    prompt: str
    target: int
    other: int | None
    ablation: str
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
    scores: Mapping[str, Tensor] | None = None,
    *,
    ablation: Ablation | None = None,
    margin: Margin | None = None,
    sizes: Sequence[float] = mib.SIZES,
    freeze: str | None = "attention",
    strict: bool = True,
) -> Curves:
    """Keep the best nodes of a graph, ablate the others, and see how much of the margin is left; and the reverse.

    Args:
        scores: {name: (n)}, of the nodes of `NodeSet.of(graph)`, larger is better; `node_scores(...).scores` fits.
            None: the graph's total effects on the margin.
        ablation: what other nodes become; None: zero.
        margin: what is measured; by default between the two likeliest tokens of the graph.
        sizes: shares of nodes, ascending.
        freeze: "attention" or None.

    Raises:
        ValueError: scores or an ablation that do not fit the graph, sizes outside (0, 1], a margin that does not depend
            on the nodes.
    """
    margin = margin_of(graph) if margin is None else margin
    runner = CircuitRunner.of(model, sets, graph, ablation=ablation, freeze=freeze, strict=strict)
    n = len(runner.nodes)
    if scores is None:
        scores = {"graph": graph_scores(graph, margin)}
    if wrong := {name: list(s.shape) for name, s in scores.items() if s.shape != (n,)}:
        raise ValueError(
            f"faithfulness: scores must be [{n}], one for each feature and error of the graph, got {wrong}"
        )
    if not all(0 < size <= 1 for size in sizes):
        raise ValueError(f"faithfulness: sizes are shares of the nodes, in (0, 1], got {list(sizes)}")

    def measure(keep: Tensor) -> float:
        return float(margin(runner.logits(keep)))

    def in_graph(keep: Tensor) -> Tensor:
        return (~NodeSet.mask(graph)).masked_scatter(NodeSet.mask(graph), keep)

    every = torch.ones(n, dtype=torch.bool)
    full, empty = float(margin(runner.lens.capped(runner.local.trace.logits))), measure(~every)

    def curve(ranking: Tensor) -> Curve:
        order = torch.argsort(ranking, descending=True, stable=True)
        counts = [int(size * n + 1e-9) for size in sizes]  # 0.29 * 100 is less than 29
        circuits = [torch.zeros_like(every).index_fill(0, order[:count], True) for count in counts]
        return Curve(
            list(sizes),
            counts,
            [mib.faithfulness(measure(circuit), full, empty) for circuit in circuits],
            [mib.faithfulness(measure(~circuit), full, empty) for circuit in circuits],
            [recovery(graph, in_graph(circuit), margin) for circuit in circuits],
        )

    curves = {name: {"signed": curve(s), "absolute": curve(s.abs())} for name, s in scores.items()}
    return Curves(graph.meta["prompt"], margin.target, margin.other, runner.ablation.kind, full, empty, curves)


def graph_scores(graph: Graph, margin: Margin | None = None) -> Tensor:
    """Total effects of the nodes of `NodeSet.of(graph)` on the margin, (n)."""
    return total_effects(graph, margin)[NodeSet.mask(graph)]


def hierarchical_scores(graph: Graph, margin: Margin | None = None, mode: str = "signed") -> Tensor:
    """Ranking of the nodes of `NodeSet.of(graph)` by hierarchical attribution to the margin (Ge et al. 2024), (n)."""
    margin = margin_of(graph) if margin is None else margin
    start = margin.weights(graph).double() * values(graph)
    return entry_thresholds(graph, start, mode)[NodeSet.mask(graph)]
