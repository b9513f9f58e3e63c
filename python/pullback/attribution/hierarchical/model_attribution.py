"""The result of `attribute_through_model`: attributions by site, leaves, edges, and tables of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pullback.attribution import nodes as k
from pullback.attribution.hierarchical.backward import Attributions, LeafName
from pullback.attribution.hierarchical.live import LivePass
from pullback.attribution.names import node_id

if TYPE_CHECKING:
    import pandas as pd


class Candidates(NamedTuple):
    """The candidates at one site: features that are active, scores that the mask lets through."""

    places: Tensor  # Int64[Tensor, 'n 2'], (position, feature); of scores Int64[Tensor, 'n 3'], (head, to, from)
    value: Tensor  # (n)
    attribution: Tensor  # (n), 0 where it was cut


class Edges(NamedTuple):
    """Direct effects. Nodes are numbered as in `ModelAttribution.attribution`; the target is -1."""

    source: Tensor  # (E)
    target: Tensor  # (E)
    weight: Tensor  # (E)


@dataclass(frozen=True, eq=False)
class ModelAttribution:
    """What everything contributes to one number that the model computes.

    Attributes:
        value: the number.
        nodes: candidates by site, such as "blocks.2.hook_mlp_out".
        own: {site of features: (n)}, what the biases of each feature contribute through it.
        leaves: {(kind, layer): (T)}, of kinds "embedding", "position", "error", "attention_error", "mlp_bias" and
            "attn_bias".
        rest: what the target's own biases contribute.
        edges: direct effects between kept nodes, where they were asked for.
    """

    tokens: Tensor  # (T)
    str_tokens: list[str]
    value: float
    nodes: Mapping[str, Candidates]
    own: Mapping[str, Tensor]
    leaves: Mapping[LeafName, Tensor]
    rest: float
    edges: Edges | None = None

    @staticmethod
    def of(live: LivePass, value: float, found: Attributions) -> ModelAttribution:
        nodes = {
            site: Candidates(node.places, node.values.detach(), found.nodes[site]) for site, node in live.nodes.items()
        }
        t = live.trace
        return ModelAttribution(t.tokens, t.str_tokens, value, nodes, found.own, found.leaves, float(found.rest))

    @cached_property
    def attribution(self) -> Tensor:
        """Of all nodes, site by site, and of all leaves after them, (n)."""
        return torch.cat([*(c.attribution for c in self.nodes.values()), *self.leaves.values()])

    @property
    def kept(self) -> Tensor:
        """Mask of the nodes that were not cut and the leaves that contribute, (n)."""
        return self.attribution != 0

    @property
    def recovery(self) -> float:
        """The share of the target that biases and leaves give it, through kept nodes; 1 where nothing is cut and the
        target is linear. Of direct effects: the share that comes through no node. NaN of a target of 0."""
        ends = torch.cat([*self.own.values(), *self.leaves.values()]).sum()
        return (float(ends) + self.rest) / self.value if self.value else math.nan

    def to_pandas(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """(nodes, edges): what is kept, largest first, with ids as of graphs, of scores `{l}_score_{head}_{from}_{to}`;
        and direct effects by id, where the target is "target"."""
        import pandas as pd

        rows = [row for site, found in self.nodes.items() for row in self._described(site, found)]
        for (kind, layer), contributions in self.leaves.items():
            rows += [(self._leaf_id(kind, layer, pos), kind, layer, pos) for pos in range(len(contributions))]
        nodes = pd.DataFrame(rows, columns=["id", "kind", "layer", "pos"])
        nodes["token"] = [self.str_tokens[pos] for pos in nodes["pos"]]
        nodes["attribution"] = self.attribution.cpu().numpy()
        columns = ["source", "target", "weight"]
        edges = pd.DataFrame({c: getattr(self.edges, c).cpu().numpy() if self.edges else [] for c in columns})
        ids = [*nodes["id"], "target"]
        for end in columns[:2]:
            edges[end] = [ids[n] for n in edges[end]]
        largest = self.attribution.abs().argsort(descending=True, stable=True)[: int(self.kept.sum())]
        return nodes.iloc[largest.tolist()].reset_index(drop=True), edges

    def _described(self, site: str, found: Candidates) -> list[tuple[str, str, int, int]]:
        """id, kind, layer, position"""
        layer, places = int(site.split(".")[1]), found.places.tolist()
        if found.places.shape[1] == 3:
            return [(f"{layer}_score_{head}_{src}_{dst}", "score", layer, dst) for head, dst, src in places]
        kind = k.ATTENTION_FEATURE if site.endswith("hook_attn_out") else k.FEATURE
        return [(node_id(kind, layer, pos, f), k.KINDS[kind], layer, pos) for pos, f in places]

    def _leaf_id(self, kind: str, layer: int, pos: int) -> str:
        if kind == "embedding":
            return node_id(k.EMBEDDING, layer, pos, int(self.tokens[pos]))
        if kind.endswith("_bias"):
            return node_id(k.BIAS, layer, pos, k.BIAS_KINDS.index(kind.removesuffix("_bias")))
        return node_id(k.KINDS.index(kind), layer, pos, -1)
