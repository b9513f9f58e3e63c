"""Node names, shared by tables, files and pages (FORMATS.md a)."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from pullback.attribution.nodes import (
    ATTENTION_ERROR,
    ATTENTION_FEATURE,
    BIAS,
    BIAS_KINDS,
    DIRECTION,
    EMBEDDING,
    ERROR,
    LOGIT,
    OWN,
    POSITION,
    Nodes,
)


def node_ids(n: Nodes) -> list[str]:
    """`node_id` of every node, and `own_{target}` of own leaves."""
    columns = zip(n.kind.tolist(), n.layer.tolist(), n.pos.tolist(), n.feature.tolist(), strict=True)
    names = ["" if kind == OWN else node_id(kind, layer, pos, feature) for kind, layer, pos, feature in columns]
    for place in (n.kind == OWN).nonzero()[:, 0].tolist():
        names[place] = f"own_{names[int(n.feature[place])]}"
    return names


def node_id(kind: int, layer: int, pos: int, feature: int) -> str:
    """`{l}_{feature}_{pos}`, `{l}_-1_{pos}`, of attention outputs with an A in front, `E_{vocab}_{pos}`, `P_{pos}`,
    `{l}_bias_{kind}_{pos}`, `{n_layers + 1}_{vocab}_{pos}`, `D_{number}_{pos}`."""
    if kind == EMBEDDING:
        return f"E_{feature}_{pos}"
    if kind == POSITION:
        return f"P_{pos}"
    if kind == ERROR:
        return f"{layer}_-1_{pos}"
    if kind in (ATTENTION_FEATURE, ATTENTION_ERROR):
        return f"A{layer}_{feature}_{pos}"
    if kind == BIAS:
        return f"{layer}_bias_{BIAS_KINDS[feature]}_{pos}"
    if kind == LOGIT:
        return f"{layer + 1}_{feature}_{pos}"
    if kind == DIRECTION:
        return f"D_{feature}_{pos}"
    return f"{layer}_{feature}_{pos}"


def places_of(nodes: Iterable[str | int], ids: Callable[[], list[str]], n: int) -> Tensor:
    """Numbers of nodes given by id or number, (m): of one, or of several. `ids` gives those of all n nodes.

    Raises KeyError for an unknown id, IndexError for a number that no node has, and TypeError for one that is not
    whole, or a mask.
    """
    # Arrays and tensors have an index too, which those of one number only can give.
    one = isinstance(nodes, str | SupportsIndex) and getattr(nodes, "ndim", 0) == 0
    asked: list[Any] = [nodes] if one else list(nodes)
    if str(getattr(nodes, "dtype", "")).endswith("bool") or any(isinstance(node, bool) for node in asked):
        raise TypeError("graph: nodes are ids or numbers, not a mask of bool; of a mask, give mask.nonzero()[:, 0]")
    where = {name: place for place, name in enumerate(ids())} if any(isinstance(node, str) for node in asked) else {}
    if unknown := [node for node in asked if isinstance(node, str) and node not in where]:
        raise KeyError(f"graph: there is no node {unknown[0]!r}; there are {', '.join(list(where)[:3])}, ...")
    found = [where[node] if isinstance(node, str) else operator.index(node) for node in asked]
    if found and not 0 <= min(found) <= max(found) < n:
        raise IndexError(f"graph: nodes are numbered 0..{n - 1}, got {found}")
    return torch.tensor(found, dtype=torch.long)
