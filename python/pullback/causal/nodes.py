"""Sets of nodes that causal tests keep, ablate and score: features and errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback.attribution import Graph
from pullback.attribution.local import LocalModel, local_model
from pullback.attribution.nodes import ERROR, FEATURE
from pullback.lens import as_lens
from pullback.transcoders import LayeredDictionary


@dataclass(frozen=True, eq=False)
class NodeSet:
    """n nodes, each once: features, and the errors of layers, whose `feature` is -1."""

    layer: Tensor  # (n) int64
    pos: Tensor  # (n) int64
    feature: Tensor  # (n) int64

    @staticmethod
    def mask(graph: Graph) -> Tensor:
        """Which nodes of a graph belong to its node set, (n_nodes) bool."""
        return graph.of_kind(FEATURE, ERROR)

    @staticmethod
    def of(graph: Graph) -> NodeSet:
        """The features and errors of a graph, in its order."""
        nodes = graph.nodes[NodeSet.mask(graph)]
        return NodeSet(nodes.layer.long(), nodes.pos.long(), nodes.feature)

    @staticmethod
    def active(
        model: Any, sets: LayeredDictionary, prompt: str | Sequence[int] | Tensor, *, strict: bool = True
    ) -> NodeSet:
        """Every feature that is active on a prompt, and every error."""
        lens = as_lens(model)
        local = local_model(lens, sets, lens.to_tokens(prompt), strict=strict)
        T = torch.arange(local.n_pos)
        parts = [(a.rows().cpu(), torch.full((a.nnz,), i), a.indices.cpu().long()) for i, a in local.acts.items()]
        parts += [(T, torch.full_like(T, i), torch.full_like(T, -1)) for i in range(local.n_layers)]
        pos, layer, feature = (torch.cat(column) for column in zip(*parts, strict=True))
        return NodeSet(layer, pos, feature)

    def union(self, other: NodeSet) -> NodeSet:
        """These nodes, then those of `other` that are not among them."""
        own = set(self.places())
        new = torch.tensor([place not in own for place in other.places()], dtype=torch.bool)
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
        return list(zip(*(column.tolist() for column in self._columns()), strict=True))

    def ids(self) -> list[str]:
        """Names of nodes, as `Graph.node_ids` has them."""
        return [f"{layer}_{feature}_{pos}" for layer, pos, feature in self.places()]

    def _columns(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.layer, self.pos, self.feature

    def must_fit(self, local: LocalModel) -> None:
        """Raises ValueError where a node is none of this prompt and these transcoders."""
        for layer, pos, feature in self.places():
            known = local.sets[layer].d_sae if layer in local.sets else 0
            if not (0 <= layer < local.n_layers and 0 <= pos < local.n_pos and -1 <= feature < known):
                raise ValueError(
                    f"node {layer}_{feature}_{pos} is none of this prompt of {local.n_pos} tokens and these "
                    "transcoders: nodes of another graph?"
                )
