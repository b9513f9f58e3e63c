"""How much of what the whole model does a circuit does alone (METHODS 2.7, 5.8)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback.attribution import FeatureTarget, Graph
from pullback.causal import mib
from pullback.causal.ablation import Ablation
from pullback.causal.circuit import CircuitRunner
from pullback.causal.margin import Margin, margin_of
from pullback.causal.nodes import NodeSet
from pullback.transcoders import LayeredDictionary

ERRORS = ("nodes", "kept", "dropped")


class Faithfulness:
    """Shares of a measure that circuits of a graph's nodes keep: (m(C) - m(0)) / (m(full) - m(0)).

    m(full) is the unchanged model's, m(0) that of the circuit without nodes. With errors "nodes", a circuit has those
    that are chosen, as of features; "kept": it has all of them, the empty one too; "dropped": none, and nothing stands
    in for them, so that the share of all features together is what they do without what transcoders miss.

    Attributes:
        candidates: nodes of the runner that circuits are chosen from, (n) bool.
        full, empty: the measure.

    Raises:
        ValueError: another choice of errors, a graph or an ablation of other prompts or transcoders.
    """

    def __init__(
        self,
        model: Any,
        sets: LayeredDictionary,
        graph: Graph,
        measure: Margin | FeatureTarget,
        *,
        errors: str,
        ablation: Ablation | None,
        freeze: str | None,
        attention_saes: LayeredDictionary | None,
        strict: bool,
    ) -> None:
        if errors not in ERRORS:
            raise ValueError(f"faithfulness: errors must be one of {', '.join(ERRORS)}, got {errors!r}")
        if errors == "dropped" and ablation is not None:
            ablation = ablation.without_errors()
        options = {"freeze": freeze, "attention_saes": attention_saes, "strict": strict}
        self.runner = CircuitRunner.of(model, sets, graph, ablation=ablation, **options)
        self.measure, is_error = measure, self.runner.nodes.is_error
        self.candidates = torch.ones_like(is_error) if errors == "nodes" else ~is_error
        self.always = is_error if errors == "kept" else torch.zeros_like(is_error)
        self.full = self.runner.unchanged(measure)
        self.empty = self.runner.measured(measure, self.always)

    def nodes(self, chosen: Tensor) -> Tensor:
        """The circuit of chosen nodes, (n) bool."""
        return (chosen & self.candidates) | self.always

    def __call__(self, chosen: Tensor) -> float:
        """Of the circuit of nodes (n) of bool. Raises ValueError where the measure does not depend on the nodes."""
        return mib.faithfulness(self.runner.measured(self.measure, self.nodes(chosen)), self.full, self.empty)


def circuit_faithfulness(
    model: Any,
    sets: LayeredDictionary,
    graph: Graph,
    keep: Tensor,
    *,
    measure: Margin | FeatureTarget | None = None,
    errors: str = "nodes",
    ablation: Ablation | None = None,
    freeze: str | None = "attention",
    attention_saes: LayeredDictionary | None = None,
    strict: bool = True,
) -> float:
    """Share of a measure that one circuit of a graph keeps with all other features ablated, by running the model.

    Args:
        graph: the whole one; keep (n_nodes) bool: the circuit, as `Hierarchical.kept`. Only features and errors of it
            are looked at.
        measure: a margin between logits, or the pre-activation of a feature; by default `margin_of(graph)`.
        errors: "nodes": kept where the circuit has them; "kept": all of them; "dropped": none.
        ablation: what other features become; None: zero.
        freeze: "attention" or None.
        attention_saes: those that the graph was made with.

    Raises:
        ValueError: a mask that does not fit, another choice of errors, a measure that does not depend on the nodes.
    """
    if keep.dtype != torch.bool or keep.shape != (graph.n_nodes,):
        raise ValueError(
            f"faithfulness: keep must be a mask [{graph.n_nodes}] of bool over the graph's nodes, got {keep.dtype} "
            f"{list(keep.shape)}"
        )
    measure = margin_of(graph) if measure is None else measure
    judge = Faithfulness(
        model,
        sets,
        graph,
        measure,
        errors=errors,
        ablation=ablation,
        freeze=freeze,
        attention_saes=attention_saes,
        strict=strict,
    )
    return judge(keep[NodeSet.mask(graph)])
