"""Writing the graph JSON of circuit-tracer and Neuronpedia, and the page drawn from it (FORMATS.md a)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from pullback import viz
from pullback._util.atomic import atomic_save
from pullback.attribution import nodes as k
from pullback.attribution.exchange.pairing import cantor
from pullback.attribution.graph import Graph

FEATURE_TYPES = {
    k.EMBEDDING: "embedding",
    k.POSITION: "bias",
    k.FEATURE: "cross layer transcoder",  # the name viewers know, for per-layer transcoders too
    k.ERROR: "mlp reconstruction error",
    k.BIAS: "bias",
    k.OWN: "bias",
    k.LOGIT: "logit",
    k.DIRECTION: "logit",
    k.ATTENTION_FEATURE: "lorsa",  # the name viewers know for sparse features of attention
    k.ATTENTION_ERROR: "lorsa error",
}
# What a graph says of itself that goes into the metadata as it is, and comes back.
CARRIED = ("generation_settings", "pruning_settings", "attention_layers", "agreement")
NOTEBOOK_EDGES = 100_000


def to_neuronpedia(
    graph: Graph, path: str | PathLike[str] | None, labels: Mapping[str, str], metadata: dict[str, Any]
) -> dict[str, Any]:
    """The payload, with names of features by node id and further metadata (`slug`, `scan`, `info`, ...)."""
    replacement, completeness = graph.meta.get("scores") or graph.scores()
    prompt = graph.meta["prompt"]
    payload = {
        "metadata": {
            "slug": re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "graph",
            **_scan(graph.meta.get("scan") or graph.meta["model_name"]),
            "prompt_tokens": graph.meta["str_tokens"],
            "prompt": prompt,
            "node_threshold": graph.meta.get("pruning_settings", {}).get("node_threshold", 1.0),
            "schema_version": 1,
            "info": {"generator": {"name": "pullback", "version": _version()}},
            "scores": {"replacement": replacement, "completeness": completeness},
            "check_max_error": _finite(graph.check()),
            "dtype": str(graph.weights.dtype).removeprefix("torch."),
            **{key: graph.meta[key] for key in CARRIED if key in graph.meta},
            **graph.meta.get("metadata", {}),
            **metadata,
        },
        "qParams": graph.view.among(graph.node_ids()).to_params(),
        "nodes": _nodes(graph, {**graph.view.labels, **labels}),
        "links": _links(graph),
    }
    _mark_targets(graph, payload)
    if path is not None:
        atomic_save(Path(path), json.dumps(payload, ensure_ascii=False, allow_nan=False).encode())
    return payload


def _scan(transcoders: str | list[str]) -> dict[str, Any]:
    """How a viewer finds the cards of the features: one name, or one that stands for a list."""
    if isinstance(transcoders, str):
        return {"scan": transcoders, "transcoder_list": []}
    digest = hashlib.sha256("-".join(transcoders).encode()).hexdigest()
    return {"scan": f"custom-{digest[:16]}", "transcoder_list": transcoders}


def _version() -> str:
    from importlib.metadata import version

    return version("pullback")


def _finite(value: float) -> float | None:
    return value if value == value else None


def _nodes(graph: Graph, labels: Mapping[str, str]) -> list[dict[str, Any]]:
    n = graph.nodes
    ids = graph.node_ids()
    share = graph.cumulative_influence().tolist()
    logit_labels = iter(graph.meta["logit_labels"])
    nodes = []
    columns = (
        n.kind.tolist(),
        n.layer.tolist(),
        n.pos.tolist(),
        n.feature.tolist(),
        n.activation.tolist(),
        n.preactivation.tolist(),
        graph.dropped.tolist(),
    )
    for i, (kind, layer, pos, feature, activation, preactivation, dropped) in enumerate(zip(*columns, strict=True)):
        label = next(logit_labels) if kind == k.LOGIT else ""
        nodes.append(
            {
                "node_id": ids[i],
                "feature": _feature_field(kind, layer, pos, feature),
                "layer": _layer_field(kind, layer),
                "ctx_idx": pos,
                "feature_type": FEATURE_TYPES[kind],
                "token_prob": activation if kind == k.LOGIT else 0.0,
                "is_target_logit": kind == k.LOGIT,
                "run_idx": 0,
                "reverse_ctx_idx": 0,
                "jsNodeId": _js_id(kind, layer, pos, feature, ids[i]),
                # Viewers split a logit's label at "(p=".
                "clerp": f'Output "{label}" (p={activation:.3f})' if kind == k.LOGIT else labels.get(ids[i], ""),
                "influence": share[i],
                "activation": _finite(activation),
                "preactivation": _finite(preactivation),
                "kind": k.KINDS[kind],
            }
            | ({"dropped": dropped} if kind in (*k.FEATURES, k.LOGIT, k.DIRECTION) else {})
        )
    return nodes


def _mark_targets(graph: Graph, payload: dict[str, Any]) -> None:
    """Directions are shown as logits, the only targets that viewers know, and explained features are pinned."""
    directions = graph.of_kind(k.DIRECTION).nonzero()[:, 0].tolist()
    for i, label in zip(directions, graph.meta.get("direction_labels", []), strict=True):
        weight = float(graph.target_weights[i])
        payload["nodes"][i] |= {
            "layer": str(graph.meta["n_layers"] + 1),
            "site_layer": int(graph.nodes.layer[i]),
            "token_prob": weight,
            "is_target_logit": True,
            "clerp": f'Output "{label}" (p={weight:.3f})',
            "kind": "logit",
        }
    pinned = (graph.explained & graph.of_kind(*k.FEATURES)).nonzero()[:, 0].tolist()
    names = [payload["nodes"][i]["node_id"] for i in pinned]
    payload["qParams"]["pinnedIds"] = list(dict.fromkeys([*payload["qParams"]["pinnedIds"], *names]))
    if graph.given_weights is not None:
        for i in graph.explained.nonzero()[:, 0].tolist():
            payload["nodes"][i]["target_weight"] = float(graph.given_weights[i])


def _feature_field(kind: int, layer: int, pos: int, feature: int) -> int | None:
    if kind in k.FEATURES:
        return cantor(layer, feature)
    return {k.EMBEDDING: pos, k.ERROR: -1, k.ATTENTION_ERROR: -1, k.LOGIT: feature}.get(kind)


def _layer_field(kind: int, layer: int) -> str:
    if kind in (k.EMBEDDING, k.POSITION):
        return "E"
    return str(layer + 1) if kind == k.LOGIT else str(layer)


def _js_id(kind: int, layer: int, pos: int, feature: int, node_id: str) -> str:
    if kind == k.FEATURE:
        return f"{layer}_{feature}-0"
    if kind == k.ERROR:
        return f"{layer}_-1-{pos}"
    if kind == k.EMBEDDING:
        return f"E_{feature}-{pos}"
    return f"L_{feature}-{pos}" if kind == k.LOGIT else node_id


def _links(graph: Graph) -> list[dict[str, Any]]:
    ids = graph.node_ids()
    columns = zip(graph.sources.tolist(), graph.rows().tolist(), graph.weights.tolist(), strict=True)
    return [{"source": ids[s], "target": ids[t], "weight": w} for s, t, w in columns]


def _payload(graph: Graph, pinned: Iterable[str], labels: Mapping[str, str]) -> dict[str, Any]:
    payload = to_neuronpedia(graph, None, labels, {})
    payload["qParams"]["pinnedIds"] += [name for name in pinned if name not in payload["qParams"]["pinnedIds"]]
    return payload


def to_html(
    graph: Graph,
    path: str | PathLike[str] | None,
    pinned: Iterable[str],
    labels: Mapping[str, str],
    cards: Mapping[str, Mapping[str, Any]] | None = None,
    compare: Graph | None = None,
) -> str:
    payload = _payload(graph, pinned, labels)
    if compare is None:
        page = viz.graph_page(payload, cards=cards)
    else:
        page = viz.diff_page(payload, _payload(compare, (), labels), cards=cards)
    if path is not None:
        atomic_save(Path(path), page.encode())
    return page


def notebook_html(graph: Graph) -> str:
    """The page in a frame. A graph too large for a notebook is pruned first: nobody asked for that page by name."""
    return viz.notebook_html(_payload(graph if graph.n_edges <= NOTEBOOK_EDGES else graph.prune(), (), {}))
