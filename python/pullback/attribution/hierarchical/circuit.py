"""`hierarchical`: the circuit of one target, nodes by gated attribution and edges by direct effects."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pullback._util.atomic import atomic_save
from pullback.attribution import nodes as k
from pullback.attribution.asked import Asked
from pullback.attribution.build import attribute
from pullback.attribution.effects import values
from pullback.attribution.graph import Graph
from pullback.attribution.hierarchical.attention import Attended, attended
from pullback.attribution.hierarchical.gates import Gate, Thresholds, gated
from pullback.attribution.hierarchical.standard import ungated
from pullback.lens.tokens import Prompt
from pullback.transcoders import LayeredDictionary

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Hierarchical:
    """A circuit found by hierarchical attribution.

    Attributes:
        whole: the graph that it was found in.
        graph: its part on the kept nodes, edges between them in full.
        target: number of the target among the nodes of `whole`.
        attribution: (n_nodes of `whole`) float64, 0 where a node was cut; the target's is its value, an own leaf's
            what it adds through its target.
        recovery: the share of the target that all leaves give it through kept nodes, 1 where nothing is cut.
        faithfulness: shares of the target that the model itself keeps, by what was done with errors, where somebody
            ran it (`pullback.causal.circuit_faithfulness`).
        asked: the target as it was asked for, where it was.
        attended: where attention carries the circuit, where somebody asked (`attention`).
    """

    whole: Graph
    graph: Graph
    target: int
    attribution: Tensor
    kept: Tensor
    recovery: float
    faithfulness: Mapping[str, float] = field(default_factory=dict)
    asked: Asked = None
    attended: Sequence[Attended] = ()

    def attention(self, model: Any, sets: LayeredDictionary, **options: Any) -> Hierarchical:
        """The same, with the entries of patterns that carry most of it, and why heads look there: see `attended`."""
        return replace(self, attended=attended(model, sets, self, **options))

    def to_pandas(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """(nodes, edges) as of `Graph.to_pandas`, nodes with a column `attribution`."""
        nodes, edges = self.graph.to_pandas()
        nodes["attribution"] = self.attribution[self.kept].numpy()
        return nodes, edges

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """The circuit on the page of attribution graphs, its target pinned; written to `path` if given."""
        told = self.graph.meta.get("metadata", {}) | self._attention()
        graph = replace(self.graph, meta={**self.graph.meta, "metadata": told})
        return graph.to_html(path, pinned=[self.whole.node_ids()[self.target]])

    def _attention(self) -> dict[str, Any]:
        """What files have of it, where somebody asked."""
        return {"attention": [one.to_dict() for one in self.attended]} if self.attended else {}

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Target, recovery, faithfulness, nodes with their attributions, and edges; written to `path` if given."""
        nodes, edges = self.to_pandas()
        columns = ["id", "kind", "layer", "pos", "feature", "token", "attribution"]
        payload = {
            "target": self.whole.node_ids()[self.target],
            "recovery": self.recovery,
            "faithfulness": dict(self.faithfulness),
            "nodes": nodes.filter(columns).to_dict("records"),
            "edges": edges.to_dict("records"),
            **self._attention(),
        }
        text = json.dumps(payload, indent=1)
        if path is not None:
            atomic_save(path, text)
        return text


def hierarchical(
    model: Any,
    sets: LayeredDictionary,
    prompt: Prompt,
    target: Asked = None,
    *,
    tau: Thresholds = 0.1,
    mode: str = "signed",
    relative: bool = False,
    top: int | None = None,
    keep_errors: bool = False,
    standard: bool = False,
    **options: Any,
) -> Hierarchical:
    """The circuit behind one target of a prompt: a logit, a logit difference, a direction, or a feature.

    Method: Ge et al. 2024, "Automatically Identifying Local and Global Circuits with Linear Computation Graphs".

    Args:
        target: as one of `attribute`'s `attribution_targets`; None: the likeliest next token.
        tau, mode, relative, top: what is kept, see `Gate`.
        keep_errors: keep error leaves whatever they carry.
        standard: for comparison, attributions along all paths, cut afterwards: what is kept need not be connected.
        options: further arguments of `attribute`.

    Raises:
        ValueError: several targets, an unknown mode, and as `attribute` does.
    """
    gate = Gate(tau, mode, relative, top)
    alone = {"max_n_logits": 1} if target is None else {}
    whole = attribute(model, sets, prompt, attribution_targets=target, **alone, **options)
    return replace(circuit_of(whole, gate=gate, keep_errors=keep_errors, standard=standard), asked=target)


def circuit_of(
    graph: Graph,
    target: str | int | None = None,
    *,
    gate: Gate | None = None,
    keep_errors: bool = False,
    standard: bool = False,
) -> Hierarchical:
    """The circuit of one node of a graph that is there already, by id or number; None: of the one it explains.
    Otherwise as `hierarchical`.

    Raises ValueError where that is not one node with edges into it.
    """
    places = graph.places(None if target is None else [target])
    if len(places) != 1:
        raise ValueError(f"hierarchical: a circuit has one target, this graph explains {len(places)}; name one of them")
    t = int(places[0])
    if int(graph.indptr[t + 1]) == int(graph.indptr[t]):
        raise ValueError(f"hierarchical: {graph.node_ids()[t]} has no edges into it; a target must be explained")
    start = torch.zeros(graph.n_nodes, dtype=torch.float64)
    start[t] = values(graph)[t]
    attribution, through = (ungated if standard else gated)(graph, start, gate or Gate())
    error = graph.of_kind(*k.ERRORS)
    if keep_errors:
        attribution = torch.where(error, through, attribution)
    leaves = graph.of_kind(k.EMBEDDING, k.POSITION, *k.ERRORS, k.BIAS, k.OWN)
    recovery = float(through[leaves].sum() / values(graph)[t])
    kept = attribution != 0
    kept[t] = True
    own = graph.nodes.kind == k.OWN  # an own leaf stays with its target in a part of a graph
    kept[own] = kept[graph.nodes.feature[own]]
    return Hierarchical(graph, graph.subgraph(kept), t, attribution, kept, recovery)
