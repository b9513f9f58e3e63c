"""Sets of nodes that causal tests keep, ablate and score: features and errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pullback.attribution import Graph
from pullback.attribution.local import Dictionaries, local_model
from pullback.attribution.nodes import ATTENTION_ERROR, ATTENTION_FEATURE, ERRORS, FEATURES, KINDS
from pullback.lens import Trace, as_lens
from pullback.transcoders import LayeredDictionary


@dataclass(frozen=True, eq=False)
class NodeSet:
    """n nodes, each once: features, and the errors of layers, whose `feature` is -1; of MLPs, and of attention outputs
    where `attention` says so (by default nowhere)."""

    layer: Tensor  # (n) int64
    pos: Tensor  # (n) int64
    feature: Tensor  # (n) int64
    attention: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))  # (n) bool

    def __post_init__(self) -> None:
        if len(self.attention) < len(self.layer):
            object.__setattr__(self, "attention", torch.zeros_like(self.layer, dtype=torch.bool))

    @staticmethod
    def mask(graph: Graph) -> Tensor:
        """Which nodes of a graph belong to its node set, (n_nodes) bool."""
        return graph.of_kind(*FEATURES, *ERRORS)

    @staticmethod
    def of(graph: Graph) -> NodeSet:
        """The features and errors of a graph, in its order."""
        nodes = graph.nodes[NodeSet.mask(graph)]
        at_attention = torch.isin(nodes.kind, nodes.kind.new_tensor([ATTENTION_FEATURE, ATTENTION_ERROR]))
        return NodeSet(nodes.layer.long(), nodes.pos.long(), nodes.feature, at_attention)

    @staticmethod
    def active(
        model: Any,
        sets: LayeredDictionary,
        prompt: str | Sequence[int] | Tensor,
        *,
        attention_saes: LayeredDictionary | None = None,
        strict: bool = True,
    ) -> NodeSet:
        """Every feature that is active on a prompt, and every error."""
        lens = as_lens(model)
        local = local_model(lens, sets, lens.to_tokens(prompt), strict=strict, attention_saes=attention_saes)
        T = torch.arange(local.n_pos)
        parts: list[NodeSet] = []
        for (kind, i), a in local.active.items():
            at_attention = torch.full((a.nnz,), kind == "attn_features")
            parts.append(NodeSet(torch.full((a.nnz,), i), a.rows().cpu(), a.indices.cpu().long(), at_attention))
        for at_attention, layers in ((False, range(local.n_layers)), (True, local.attention.errors)):
            attention = torch.full_like(T, at_attention, dtype=torch.bool)
            parts += [NodeSet(torch.full_like(T, i), T, torch.full_like(T, -1), attention) for i in layers]
        return NodeSet(*(torch.cat(column) for column in zip(*(part._columns() for part in parts), strict=True)))

    def union(self, other: NodeSet) -> NodeSet:
        """These nodes, then those of `other` that are not among them."""
        own = set(self.ids())
        new = torch.tensor([name not in own for name in other.ids()], dtype=torch.bool)
        return NodeSet(*(torch.cat([a, b[new]]) for a, b in zip(self._columns(), other._columns(), strict=True)))

    def __len__(self) -> int:
        return len(self.layer)

    def __getitem__(self, which: Tensor) -> NodeSet:
        return NodeSet(*(column[which] for column in self._columns()))

    def __repr__(self) -> str:
        n = int(self.is_error.sum())
        return f"NodeSet({len(self) - n} features, {n} errors)"

    @property
    def is_error(self) -> Tensor:
        """(n) bool"""
        return self.feature < 0

    def places(self) -> list[tuple[int, int, int]]:
        """(layer, position, feature) of each."""
        return list(zip(*(column.tolist() for column in self._columns()[:3]), strict=True))

    def kinds(self) -> list[str]:
        """Of each, as tables of graphs name it."""
        columns = zip(self.is_error.tolist(), self.attention.tolist(), strict=True)
        return [KINDS[(ERRORS if error else FEATURES)[attention]] for error, attention in columns]

    def ids(self) -> list[str]:
        """Names of nodes, as `Graph.node_ids` has them."""
        named = zip(self.places(), self.attention.tolist(), strict=True)
        return [f"{'A' if attention else ''}{layer}_{feature}_{pos}" for (layer, pos, feature), attention in named]

    def _columns(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.layer, self.pos, self.feature, self.attention

    def must_fit(self, dictionaries: Dictionaries, trace: Trace) -> None:
        """Raises ValueError where a node is none of this prompt and these dictionaries."""
        for (layer, pos, feature), attention in zip(self.places(), self.attention.tolist(), strict=True):
            if attention and (len(dictionaries) == 1 or layer not in dictionaries[1]):
                raise ValueError(
                    f"node A{layer}_{feature}_{pos} is of attention, and there are no autoencoders of its layer here: "
                    "give attention_saes, where it can be given; else make the graph without"
                )
            sets = dictionaries[attention]
            known = sets[layer].d_sae if layer in sets else 0
            if not (0 <= layer < len(trace.layers) and 0 <= pos < trace.n_pos and -1 <= feature < known):
                raise ValueError(
                    f"node {layer}_{feature}_{pos} is none of this prompt of {trace.n_pos} tokens and these "
                    "transcoders: nodes of another graph?"
                )
