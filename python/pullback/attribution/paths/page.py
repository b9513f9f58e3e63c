"""Path graphs as graph JSON, and on the page that draws attribution graphs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pullback import viz
from pullback._util.atomic import atomic_save
from pullback.attribution import nodes as k
from pullback.attribution.exchange.pairing import cantor
from pullback.attribution.exchange.view import GraphView
from pullback.attribution.paths.graph import PathGraph
from pullback.attribution.paths.nodes import HEAD, KINDS, PRUNED, SKIP, PathNodes

FORM = "paths"
SHOWN_AS = {k.DIRECTION: "logit", PRUNED: "error"}  # else by their own names
FEATURE_TYPES = {
    k.FEATURE: "cross layer transcoder",
    k.EMBEDDING: "embedding",
    k.ERROR: "mlp reconstruction error",
    PRUNED: "mlp reconstruction error",
    k.LOGIT: "logit",
    k.DIRECTION: "logit",
    HEAD: "attention head",
    SKIP: "skip connection",
}  # and "bias" for the rest
SAID_OF_REST = {"errors": "errors below", "biases": "biases below", "pruned": "not followed"}
ALL_POSITIONS = "all positions"


def to_json(graph: PathGraph, path: str | PathLike[str] | None, labels: Mapping[str, str]) -> dict[str, Any]:
    meta = graph.meta
    summed = bool((graph.nodes.pos < 0).all())
    payload = {
        "metadata": {
            "slug": f"paths-{graph.ids[0]}",
            "scan": meta["model_name"],
            "transcoder_list": [],
            "prompt_tokens": [ALL_POSITIONS] if summed else meta["str_tokens"],
            "prompt": meta["prompt"],
            "schema_version": 1,
            "form": FORM,
            "check_max_error": graph.check(),
            "value_name": "Contribution",
            "dtype": str(graph.weights.dtype).removeprefix("torch."),
            "paths": meta,
        },
        # Paths have been chosen already: what is here is shown.
        "qParams": GraphView(pinned=(graph.ids[0],), pruning_threshold=1.0).to_params(),
        "nodes": _nodes(graph, labels),
        "links": [
            {"source": graph.ids[s], "target": graph.ids[t], "weight": w}
            for s, t, w in zip(*(c.tolist() for c in (graph.sources, graph.targets, graph.weights)), strict=True)
        ],
    }
    if path is not None:
        atomic_save(Path(path), json.dumps(payload, ensure_ascii=False, allow_nan=False).encode())
    return payload


def _nodes(graph: PathGraph, labels: Mapping[str, str]) -> list[dict[str, Any]]:
    fed = set(graph.targets.tolist())
    share = _cumulative(graph)
    columns = (*graph.nodes.columns(), graph.activation, graph.contribution)
    nodes = []
    for n, (kind, layer, index, pos, activation, contribution) in enumerate(
        zip(*(c.tolist() for c in columns), strict=True)
    ):
        shown = SHOWN_AS.get(kind, KINDS[kind])
        name = graph.ids[n]
        nodes.append(
            {
                "node_id": name,
                "feature": cantor(layer, index) if kind == k.FEATURE else index if index >= 0 else None,
                "layer": "E" if layer < 0 else str(_row(name, kind, layer)),
                "ctx_idx": max(pos, 0),
                "feature_type": FEATURE_TYPES.get(kind, "bias"),
                "token_prob": activation if shown == "logit" else 0.0,
                "is_target_logit": n == 0 and shown == "logit",
                "jsNodeId": name,
                "clerp": labels.get(name, _said_of(graph, n, kind)),
                "influence": share.get(n),
                "activation": activation,
                "preactivation": contribution if n in fed else None,
                "kind": shown,
                "place": [KINDS[kind], layer, index, pos],
                "contribution": contribution,
            }
        )
    return nodes


def _row(name: str, kind: int, layer: int) -> int:
    """The page's row. What is below a node stands below it."""
    if name.partition("_")[0] in SAID_OF_REST:
        return max(layer - 1, 0)
    return layer + 1 if kind == k.LOGIT else layer


def _said_of(graph: PathGraph, n: int, kind: int) -> str:
    """What the page calls a node whose kind alone does not say it."""
    if n == 0 and kind in (k.LOGIT, k.DIRECTION):
        return f'Output "{graph.meta["root_label"]}" (p={float(graph.activation[0]):.3f})'
    return SAID_OF_REST.get(graph.ids[n].partition("_")[0], "")


def _cumulative(graph: PathGraph) -> dict[int, float]:
    """Of nodes on paths, the share of all their contributions, by size, of those that contribute at least as much."""
    on_paths = [n for n, name in enumerate(graph.ids) if name.partition("_")[0] not in SAID_OF_REST]
    size = graph.contribution[on_paths].abs()
    size[0] = 0  # the root is always there
    order = torch.argsort(size, descending=True, stable=True)
    share = (size[order].cumsum(0) / size.sum().clamp(min=torch.finfo(size.dtype).tiny)).clamp(max=1)
    return {on_paths[place]: within for place, within in zip(order.tolist(), share.tolist(), strict=True)} | {0: 0.0}


def from_json(source: str | PathLike[str] | Mapping[str, Any]) -> PathGraph:
    payload = source if isinstance(source, Mapping) else json.loads(Path(source).read_text(encoding="utf-8"))
    viz.validate_payload(payload)
    metadata, nodes, links = payload["metadata"], payload["nodes"], payload["links"]
    if metadata.get("form") != FORM:
        raise ValueError("paths: this graph JSON is not of PathGraph.to_json; Graph.from_neuronpedia reads others")
    dtype = torch.float64 if metadata["dtype"] == "float64" else torch.float32
    ids = [node["node_id"] for node in nodes]
    at = {name: n for n, name in enumerate(ids)}

    def whole(values: Iterable[Any]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.long)

    def real(values: Iterable[Any]) -> Tensor:
        return torch.tensor(list(values), dtype=dtype)

    kinds, *columns = zip(*(node["place"] for node in nodes), strict=True)
    return PathGraph(
        nodes=PathNodes(whole(map(KINDS.index, kinds)), *map(whole, columns)),
        ids=ids,
        contribution=real(node["contribution"] for node in nodes),
        activation=real(node["activation"] for node in nodes),
        sources=whole(at[link["source"]] for link in links),
        targets=whole(at[link["target"]] for link in links),
        weights=real(link["weight"] for link in links),
        meta=metadata["paths"],
    )


def to_html(
    graph: PathGraph,
    path: str | PathLike[str] | None,
    pinned: Iterable[str],
    labels: Mapping[str, str],
    cards: Mapping[str, Mapping[str, Any]] | None,
) -> str:
    payload = to_json(graph, None, labels)
    payload["qParams"]["pinnedIds"] += [name for name in pinned if name not in payload["qParams"]["pinnedIds"]]
    page = viz.graph_page(payload, cards=cards)
    if path is not None:
        atomic_save(Path(path), page.encode())
    return page
