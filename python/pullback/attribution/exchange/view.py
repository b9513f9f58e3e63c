"""What somebody marked in a graph: pins, supernodes, names of nodes; as viewers keep it in files and in URLs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from pullback.attribution.exchange.pairing import cantor
from pullback.attribution.nodes import FEATURE

if TYPE_CHECKING:
    from pullback.attribution.graph import Graph

LEGACY_LAYER = 100_000  # an older form of (layer, feature) in one number: layer * 100000 + feature


@dataclass(frozen=True)
class GraphView:
    """Marks on the nodes of one graph, by node id. Labels of supernodes may repeat."""

    pinned: tuple[str, ...] = ()
    supernodes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    pruning_threshold: float | None = None
    clicked: str = ""

    @staticmethod
    def from_url(url: str) -> GraphView:
        """The marks in the query of a viewer's address, as Neuronpedia's "copy link" gives it; no network is used.

        Raises ValueError for an address without any, or with such that are not readable.
        """
        query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        known = ("pinnedIds", "supernodes", "clerps", "pruningThreshold", "clickedId")
        if not any(name in query for name in known):
            raise ValueError(f"this address marks nothing (it has none of {', '.join(known)}): {url[:200]}")
        return GraphView.from_params(query)

    @staticmethod
    def from_params(params: Mapping[str, Any]) -> GraphView:
        """From the `qParams` of a file, whose lists may be JSON or, as in a URL, text."""
        threshold = params.get("pruningThreshold")
        pinned = params.get("pinnedIds") or []
        clerps = _parsed(params, "clerps")
        clerps = clerps.items() if isinstance(clerps, dict) else clerps
        try:
            return GraphView(
                pinned=tuple(filter(None, pinned.split(","))) if isinstance(pinned, str) else tuple(pinned),
                supernodes=tuple((label, tuple(ids)) for label, *ids in _parsed(params, "supernodes")),
                labels={str(key): str(label) for key, label in clerps},
                pruning_threshold=None if threshold in (None, "") else float(threshold),
                clicked=params.get("clickedId") or "",
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"a viewer's parameters are not readable: {error}") from error

    def to_params(self) -> dict[str, Any]:
        """`qParams` for a file. Labels stand on the nodes there."""
        threshold = {} if self.pruning_threshold is None else {"pruningThreshold": self.pruning_threshold}
        return {
            "pinnedIds": list(self.pinned),
            "supernodes": [[label, *ids] for label, ids in self.supernodes],
            "linkType": "both",
            "clickedId": self.clicked,
            "sg_pos": "",
            **threshold,
        }

    @property
    def marked(self) -> set[str]:
        return {*self.pinned, *self.labels, *(i for _, ids in self.supernodes for i in ids)}

    def among(self, node_ids: Iterable[str]) -> GraphView:
        """Without the marks on nodes that are not there, and without supernodes that have none left."""
        here = set(node_ids)
        supernodes = ((label, tuple(i for i in ids if i in here)) for label, ids in self.supernodes)
        return replace(
            self,
            pinned=tuple(i for i in self.pinned if i in here),
            supernodes=tuple((label, ids) for label, ids in supernodes if ids),
            labels={i: label for i, label in self.labels.items() if i in here},
            clicked=self.clicked if self.clicked in here else "",
        )

    def renamed(self, names: Mapping[str, str]) -> GraphView:
        """With other ids for some nodes."""
        return replace(
            self,
            pinned=tuple(names.get(i, i) for i in self.pinned),
            supernodes=tuple((label, tuple(names.get(i, i) for i in ids)) for label, ids in self.supernodes),
            labels={names.get(i, i): label for i, label in self.labels.items()},
            clicked=names.get(self.clicked, self.clicked),
        )


def _parsed(params: Mapping[str, Any], name: str) -> Any:
    value = params.get(name) or []
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"a viewer's parameters are not readable: {name} is no JSON ({error})") from error


def on_nodes(graph: Graph, view: GraphView) -> GraphView:
    """The marks that fall on nodes of the graph, with labels by node id, which viewers keep under other keys too."""
    labels = dict(view.labels)
    n = graph.nodes
    ids = graph.node_ids()
    for i in graph.of_kind(FEATURE).nonzero()[:, 0].tolist():
        layer, feature, pos = int(n.layer[i]), int(n.feature[i]), int(n.pos[i])
        paired = cantor(layer, feature)
        for key in (f"{layer}_{paired}_{pos}", f"{layer}_{LEGACY_LAYER * layer + feature}_{pos}", str(paired)):
            if key in view.labels:
                labels.setdefault(ids[i], view.labels[key])
    return replace(view, labels=labels).among(ids)


def carrying(graph: Graph, view: GraphView) -> Graph:
    """The graph with these marks, and the labels it has besides."""
    labels = {**graph.view.labels, **view.labels}
    kept = view.to_params() | {"clerps": list(map(list, labels.items()))}
    return replace(graph, meta={**graph.meta, "view": kept})


def marked_by(graph: Graph, view: GraphView | str) -> Graph:
    given = GraphView.from_url(view) if isinstance(view, str) else view
    here = on_nodes(graph, given)
    if given.marked and not here.marked:
        some = ", ".join(sorted(given.marked)[:3])
        raise ValueError(f"nothing that is marked here is in this graph ({some}, ...): the marks are of another graph")
    return carrying(graph, here)
