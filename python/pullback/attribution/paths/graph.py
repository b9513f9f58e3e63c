"""`PathGraph`: what paths to one root have in common, as nodes and signed edges that sum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pullback.attribution.paths.nodes import KINDS, PRUNED, PathNodes

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class PathGraph:
    """Nodes, and edges from `sources` to `targets` whose weights are contributions to the root.

    A node's contribution is what it adds to the root along the paths of this graph: where anything flows into it, the
    sum of what flows in. Of every such node, `errors_{id}` is what the transcoders below it miss, `biases_{id}` its
    own constant and the biases below it, `pruned_{id}` all that was not followed. The root is the first node.
    """

    nodes: PathNodes
    ids: list[str]
    contribution: Tensor  # (n)
    activation: Tensor  # (n), of features; the probability of a logit; 1 for the rest
    sources: Tensor  # (n_edges)
    targets: Tensor  # (n_edges)
    weights: Tensor  # (n_edges)
    meta: dict[str, Any]

    @property
    def n_nodes(self) -> int:
        return len(self.ids)

    @property
    def n_edges(self) -> int:
        return len(self.weights)

    def __repr__(self) -> str:
        return f"PathGraph({self.n_nodes} nodes, {self.n_edges} edges, root={self.ids[0]})"

    def incoming(self, *, absolute: bool = False) -> Tensor:
        """The sum of each node's incoming edges, or of their sizes, (n)."""
        weights = self.weights.abs() if absolute else self.weights
        return torch.zeros_like(self.contribution).index_add(0, self.targets, weights)

    def check(self) -> float:
        """Largest |contribution - sum of incoming edges| / max(1, sum of their sizes), over nodes that have any."""
        parents = self.targets.unique()
        gap = (self.contribution - self.incoming())[parents].abs()
        return float((gap / self.incoming(absolute=True)[parents].clamp(min=1)).max()) if len(parents) else 0.0

    def edge(self, source: str, target: str) -> float:
        """The weight of one edge, 0 where there is none. Raises KeyError for an unknown id."""
        where = {name: n for n, name in enumerate(self.ids)}
        here = (self.sources == where[source]) & (self.targets == where[target])
        return float(self.weights[here].sum())

    def with_sources(self, name: str, kind: int, targets: Tensor, weights: Tensor) -> PathGraph:
        """With a new source `{name}_{target id}` of every target whose weight is not 0."""
        there = weights != 0
        targets, weights = targets[there], weights[there]
        of = self.nodes[targets]
        new = PathNodes(torch.full_like(of.kind, kind), of.layer, torch.full_like(of.index, -1), of.pos)
        return replace(
            self,
            nodes=PathNodes.joined([self.nodes, new]),
            ids=[*self.ids, *(f"{name}_{self.ids[t]}" for t in targets.tolist())],
            contribution=torch.cat([self.contribution, weights]),
            activation=torch.cat([self.activation, torch.ones_like(weights)]),
            sources=torch.cat([self.sources, torch.arange(len(weights), device=targets.device) + self.n_nodes]),
            targets=torch.cat([self.targets, targets]),
            weights=torch.cat([self.weights, weights]),
        )

    def sum_over_tokens(self) -> PathGraph:
        """The graph in which a node is the sum of what it was at every position; ids lose theirs, and `pos` is -1.

        What a node contributes from positions where nothing flows into it, while something does at others, is added to
        what was not followed.
        """
        if bool((self.nodes.pos < 0).all()):
            return self
        summed_ids = [_without_position(name) for name in self.ids]
        fed = torch.zeros(self.n_nodes, dtype=torch.bool, device=self.weights.device)
        fed[self.targets] = True
        fed_somewhere = {summed_ids[n] for n in fed.nonzero()[:, 0].tolist()}
        ends = [n for n, name in enumerate(summed_ids) if name in fed_somewhere and not fed[n]]
        places = torch.tensor(ends, dtype=torch.long, device=fed.device)
        return self.with_sources("pruned", PRUNED, places, self.contribution[places])._summed()

    def _summed(self) -> PathGraph:
        ids = [_without_position(name) for name in self.ids]
        number = {name: n for n, name in enumerate(dict.fromkeys(ids))}
        device = self.weights.device
        into = torch.tensor([number[name] for name in ids], device=device)
        ends, edge = torch.unique(into[self.targets] * len(number) + into[self.sources], return_inverse=True)

        def summed(values: Tensor, into: Tensor, n: int) -> Tensor:
            return values.new_zeros(n).index_add(0, into, values)

        of = self.nodes[torch.tensor([ids.index(name) for name in number], device=device)]
        return PathGraph(
            nodes=replace(of, pos=torch.full_like(of.pos, -1)),
            ids=list(number),
            contribution=summed(self.contribution, into, len(number)),
            activation=summed(self.activation, into, len(number)),
            sources=ends % len(number),
            targets=ends // len(number),
            weights=summed(self.weights, edge, len(ends)),
            meta=self.meta,
        )

    # ---- out ------------------------------------------------------------------------------------------------------

    def to_pandas(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """(nodes, edges), with columns id, kind, layer, pos, index, token, activation, contribution and source, target,
        weight."""
        import pandas as pd

        tokens = self.meta["str_tokens"]
        pos = self.nodes.pos.tolist()
        nodes = pd.DataFrame(
            {
                "id": self.ids,
                "kind": [KINDS[kind] for kind in self.nodes.kind.tolist()],
                "layer": self.nodes.layer.tolist(),
                "pos": pos,
                "index": self.nodes.index.tolist(),
                "token": [tokens[p] if p >= 0 else "" for p in pos],
                "activation": self.activation.tolist(),
                "contribution": self.contribution.tolist(),
            }
        )
        ends = ([self.ids[n] for n in column.tolist()] for column in (self.sources, self.targets))
        return nodes, pd.DataFrame(
            dict(zip(("source", "target"), ends, strict=True)) | {"weight": self.weights.tolist()}
        )

    def to_json(
        self, path: str | PathLike[str] | None = None, *, labels: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Graph JSON (docs/FORMATS.md) with the kinds of paths, which `from_json` and the page read; written to `path`
        if given. `labels` names features by node id."""
        from pullback.attribution.paths.page import to_json

        return to_json(self, path, labels or {})

    @staticmethod
    def from_json(source: str | PathLike[str] | Mapping[str, Any]) -> PathGraph:
        """Read what `to_json` wrote, a file or its payload. Raises ValueError for anything else."""
        from pullback.attribution.paths.page import from_json

        return from_json(source)

    def to_html(
        self,
        path: str | PathLike[str] | None = None,
        *,
        pinned: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        cards: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> str:
        """The page that attribution graphs have; written to `path` if given, returned as text."""
        from pullback.attribution.paths.page import to_html

        return to_html(self, path, pinned, labels or {}, cards)

    def _repr_html_(self) -> str:
        from pullback import viz

        return viz.notebook_html(self.to_json())


def _without_position(name: str) -> str:
    return name.rpartition("_")[0]
