"""Reading the graph JSON of circuit-tracer, Neuronpedia and ourselves into a `Graph` (FORMATS.md a)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pullback import viz
from pullback.attribution import nodes as k
from pullback.attribution.exchange.error_ids import with_own_error_ids
from pullback.attribution.exchange.neuronpedia import CARRIED
from pullback.attribution.exchange.pairing import uncantor
from pullback.attribution.exchange.view import GraphView, carrying, on_nodes
from pullback.attribution.graph import Graph
from pullback.attribution.io import feeds_forward, named_twice

JsonNode = tuple[Mapping[str, Any], int]
"""A node as it stands in the file, and its kind here."""

KIND_OF_TYPE = {
    "embedding": k.EMBEDDING,
    "cross layer transcoder": k.FEATURE,
    "mlp reconstruction error": k.ERROR,
    "bias": k.BIAS,
    "logit": k.LOGIT,
    "lorsa": k.ATTENTION_FEATURE,
    "lorsa error": k.ATTENTION_ERROR,
}
# What a graph says itself, and what is written anew each time.
OF_THE_GRAPH = {
    *("scan", "transcoder_list", "prompt_tokens", "prompt", "node_threshold", "schema_version", "dtype"),
    *("scores", "check_max_error", *CARRIED),
}


def from_neuronpedia(source: str | PathLike[str] | Mapping[str, Any]) -> Graph:
    payload = source if isinstance(source, Mapping) else _read(Path(source))
    payload, renamed = with_own_error_ids(payload)
    viz.validate_payload(payload)
    if payload["metadata"].get("form") == "paths":
        raise ValueError(
            "graph payload: this is a graph of paths, whose edges are of another kind; read it with PathGraph.from_json"
        )
    nodes = [(node, _kind(node)) for node in payload["nodes"]]
    n_layers = _n_layers(nodes)
    nodes = [nodes[i] for i in sorted(range(len(nodes)), key=lambda i: _place(*nodes[i], n_layers, i))]
    at = {node["node_id"]: i for i, (node, _) in enumerate(nodes)}
    dtype = torch.float64 if payload["metadata"].get("dtype") == "float64" else torch.float32
    table = _table(nodes, at, n_layers, dtype)
    graph = Graph(
        nodes=table,
        **_edges(payload["links"], at, dtype),
        dropped=_column(nodes, "dropped", dtype).nan_to_num(0.0),
        cumulative=_cumulative(nodes),
        given_weights=_given_weights(nodes, dtype),
        meta=_meta(payload["metadata"], nodes, table, n_layers),
    )
    if not feeds_forward(graph):
        raise ValueError("graph payload: some links lead backwards, or into nodes that are neither features nor logits")
    if twice := named_twice(graph):
        raise ValueError(f"graph payload: the link from {twice[0]} to {twice[1]} is there more than once")
    ids = graph.node_ids()
    named = renamed | dict(zip(at, ids, strict=True))
    view = on_nodes(graph, GraphView.from_params(payload["qParams"]).renamed(named))
    clerps = {
        i: node["clerp"]
        for i, (node, kind) in zip(ids, nodes, strict=True)
        if kind not in (k.LOGIT, k.DIRECTION) and node["clerp"]
    }
    return carrying(graph, replace(view, labels={**clerps, **view.labels}))


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no graph file at {path}")
    try:
        payload = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable JSON ({error}); the file is damaged, or no graph") from error
    if not isinstance(payload, Mapping):
        raise ValueError(
            f"{path} holds no graph but {type(payload).__name__}; a graph is an object with nodes and links"
        )
    return payload


def _kind(node: Mapping[str, Any]) -> int:
    if re.fullmatch(r"D_\d+_\d+", node["node_id"]):  # viewers are told that it is a logit
        return k.DIRECTION
    if "kind" in node:
        return k.KINDS.index(node["kind"])
    if node["feature_type"] not in KIND_OF_TYPE:
        raise ValueError(
            f"graph payload: node {node['node_id']} is of type '{node['feature_type']}', which a graph here cannot "
            f"hold; known are {', '.join(KIND_OF_TYPE)}"
        )
    return KIND_OF_TYPE[node["feature_type"]]


def _n_layers(nodes: list[JsonNode]) -> int:
    """Logits stand at layer n_layers + 1; a graph without any is as high as its nodes."""
    below = [_stated_layer(node) for node, kind in nodes if kind in (*k.FEATURES, *k.ERRORS, k.BIAS)]
    logits = [_stated_layer(node) - 1 for node, kind in nodes if kind == k.LOGIT]
    return max([0, *(layer + 1 for layer in below), *logits])


def _stated_layer(node: Mapping[str, Any]) -> int:
    try:
        return int(node["layer"])
    except ValueError as error:
        raise ValueError(
            f"graph payload: node {node['node_id']} has no layer {node['layer']!r}; it is a number"
        ) from error


def _layer(node: Mapping[str, Any], kind: int, n_layers: int) -> int:
    if kind in (k.EMBEDDING, k.POSITION):
        return -1
    if kind == k.DIRECTION:
        return node.get("site_layer", n_layers)
    return n_layers if kind == k.LOGIT else min(int(node["layer"]), n_layers)  # an own leaf may be a logit's


def _place(node: Mapping[str, Any], kind: int, n_layers: int, i: int) -> tuple[int, ...]:
    """Where a node stands in the order of `Nodes`. Own leaves and what is explained keep the order they come in."""
    inactive = kind in k.FEATURES and "target_weight" in node and node.get("activation") == 0
    if kind in (k.LOGIT, k.DIRECTION) or inactive:
        return len(k.IN_ORDER), i, 0, 0
    among = k.IN_ORDER.index(kind)
    if kind == k.OWN:
        return among, i, 0, 0
    layer, pos, feature = _layer(node, kind, n_layers), node["ctx_idx"], _feature(node, kind, {})
    return (among, feature, layer, pos) if kind == k.BIAS else (among, layer, pos, feature)


def _table(nodes: list[JsonNode], at: Mapping[str, int], n_layers: int, dtype: torch.dtype) -> k.Nodes:
    kind = torch.tensor([kind for _, kind in nodes], dtype=torch.int8)
    probability, activation = (_column(nodes, name, dtype) for name in ("token_prob", "activation"))
    return k.Nodes(
        kind=kind,
        layer=torch.tensor([_layer(*node, n_layers) for node in nodes], dtype=torch.int32),
        pos=torch.tensor([node["ctx_idx"] for node, _ in nodes], dtype=torch.int32),
        feature=torch.tensor([_feature(*node, at) for node in nodes]),
        activation=torch.where(kind == k.LOGIT, probability, activation),
        preactivation=_column(nodes, "preactivation", dtype),
    )


def _column(nodes: list[JsonNode], name: str, dtype: torch.dtype) -> Tensor:
    """(n_nodes), NaN where a node does not say."""
    values = [node.get(name) for node, _ in nodes]
    return torch.tensor([torch.nan if value is None else value for value in values], dtype=dtype)


def _feature(node: Mapping[str, Any], kind: int, at: Mapping[str, int]) -> int:
    """The column `feature` of `Nodes`; `at` finds the target of an own leaf."""
    node_id = node["node_id"]
    if kind == k.OWN:
        return at[node_id.removeprefix("own_")]
    if kind == k.BIAS:
        words = node_id.split("_")
        if len(words) != 4 or words[2] not in k.BIAS_KINDS:
            raise ValueError(f"graph payload: a bias is named layer_bias_kind_position here, got '{node_id}'")
        return k.BIAS_KINDS.index(words[2])
    if kind == k.DIRECTION:
        return int(node_id.split("_")[1])
    if kind not in (k.EMBEDDING, *k.FEATURES, k.LOGIT):
        return -1
    named = re.fullmatch(rf"A?{node['layer']}_(?:lor_)?(\d+)_{node['ctx_idx']}", node_id)
    if named:
        return int(named[1])
    if kind == k.EMBEDDING or node["feature"] is None:  # an embedding's field holds its position
        return -1
    return uncantor(node["feature"])[1] if kind in k.FEATURES else node["feature"]


def _edges(links: list[Mapping[str, Any]], at: Mapping[str, int], dtype: torch.dtype) -> dict[str, Tensor]:
    rows = torch.tensor([at[link["target"]] for link in links], dtype=torch.long)
    sources = torch.tensor([at[link["source"]] for link in links], dtype=torch.int32)
    weights = torch.tensor([link["weight"] for link in links], dtype=dtype)
    order = torch.argsort(rows * len(at) + sources)
    counts = torch.bincount(rows, minlength=len(at))
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return {"indptr": indptr, "sources": sources[order], "weights": weights[order]}


def _cumulative(nodes: list[JsonNode]) -> Tensor | None:
    """A file may leave influence out, of all nodes or of the logits; what has none is least important."""
    shares = _column(nodes, "influence", torch.float64)
    return None if bool(shares.isnan().all()) else shares.nan_to_num(1.0)


def _given_weights(nodes: list[JsonNode], dtype: torch.dtype) -> Tensor | None:
    """Only our own files have them; elsewhere logits weigh as much as they are likely."""
    weights = _column(nodes, "target_weight", dtype)
    return None if bool(weights.isnan().all()) else weights.nan_to_num(0.0)


def _meta(metadata: Mapping[str, Any], nodes: list[JsonNode], table: k.Nodes, n_layers: int) -> dict[str, Any]:
    tokens = [-1] * len(metadata["prompt_tokens"])  # a file names only the tokens that are nodes
    embedding = table.kind == k.EMBEDDING
    for pos, token in zip(table.pos[embedding].tolist(), table.feature[embedding].tolist(), strict=True):
        tokens[pos] = token
    return {
        "prompt": metadata["prompt"],
        "tokens": tokens,
        "str_tokens": list(metadata["prompt_tokens"]),
        "model_name": metadata["scan"],
        "scan": metadata.get("transcoder_list") or metadata["scan"],
        "n_layers": n_layers,
        "dtype": str(table.activation.dtype).removeprefix("torch."),
        "logit_labels": [_logit_label(node["clerp"] or "") for node, kind in nodes if kind == k.LOGIT],
        "direction_labels": [_logit_label(node["clerp"] or "") for node, kind in nodes if kind == k.DIRECTION],
        **{key: metadata[key] for key in CARRIED if key in metadata},
        **_scores(metadata.get("scores") or {}),
        "metadata": {key: value for key, value in metadata.items() if key not in OF_THE_GRAPH},
    }


def _scores(scores: Mapping[str, Any]) -> dict[str, Any]:
    both = [scores.get("replacement"), scores.get("completeness")]
    return {} if None in both else {"scores": both}


def _logit_label(clerp: str) -> str:
    """The token in `Output "token" (p=0.123)`; the token may itself hold quotes, brackets and line ends."""
    whole = re.fullmatch(r'Output "(.*)" \(p=[^()]*\)', clerp, re.DOTALL)
    return whole[1] if whole else clerp
