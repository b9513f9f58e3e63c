"""The ids of error nodes in a graph JSON.

Older files call the error of layer l at position p `0_{l}_{p}`, which is also the name of feature l of layer 0 there.
Here, as in later ones, it is `{l}_-1_{p}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ERROR_TYPE = "mlp reconstruction error"
Ends = Sequence[tuple[str, str]]
"""(source, target) of every link."""


def with_own_error_ids(payload: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, str]]:
    """The payload with errors named in the new way, and {old id: new id} of those that no feature shared.

    Where a feature and an error share a name, what an error can be tells their links apart: never a target, and a
    source for later layers only. So does the order of links: those into one target stand in the order of their sources
    among the nodes. Raises ValueError where neither decides.
    """
    nodes: Any = payload.get("nodes")
    given: Any = payload.get("links")
    if not _objects(nodes) or not _objects(given) or not all({"source", "target"} <= set(link) for link in given):
        return payload, {}  # not of the form: the validation says why
    errors: dict[str, str] = {node["node_id"]: f"{node['layer']}_-1_{node['ctx_idx']}" for node in nodes if _old(node)}
    if not errors:
        return payload, {}
    others = {node.get("node_id") for node in nodes if not _old(node)}
    renamed: dict[str, str] = {old: new for old, new in errors.items() if old not in others}
    shared = {old: new for old, new in errors.items() if old in others}
    named = [{**node, "node_id": errors[node["node_id"]]} if _old(node) else node for node in nodes]
    place = {node["node_id"]: i for i, node in enumerate(named)}
    layer: dict[str, Any] = {node["node_id"]: node.get("layer") for node in named}
    ends: list[tuple[str, str]] = [
        (renamed.get(str(link["source"]), str(link["source"])), link["target"]) for link in given
    ]
    links = []
    for i, (link, (source, target)) in enumerate(zip(given, ends, strict=True)):
        if source in shared and _above(layer.get(target), layer[shared[source]]):
            source = _by_order(i, ends, place, shared)
        links.append({**link, "source": source})
    return {**payload, "nodes": named, "links": links}, renamed


def _objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, Mapping) for item in value)


def _old(node: Mapping[str, Any]) -> bool:
    old = f"0_{node.get('layer')}_{node.get('ctx_idx')}"
    return node.get("feature_type") == ERROR_TYPE and node.get("node_id") == old


def _above(target: Any, error: Any) -> bool:
    return all(str(layer).isdecimal() for layer in (target, error)) and int(target) > int(error)


def _by_order(i: int, ends: Ends, place: Mapping[str, int], shared: Mapping[str, str]) -> str:
    """Whose the i-th link is: the feature's or the error's, by the links into the same target around it."""
    name, target = ends[i]
    into = [j for j, end in enumerate(ends) if end[1] == target]
    same = [j for j in into if ends[j][0] == name]
    if len(same) == 2:
        return sorted((name, shared[name]), key=lambda source: place[source])[same.index(i)]
    known = [(j, place[ends[j][0]]) for j in into if ends[j][0] not in shared]
    below = max((at for j, at in known if j < i), default=-1)
    above = min((at for j, at in known if j > i), default=len(place))
    in_order = [at for _, at in known] == sorted(at for _, at in known)
    fits = [source for source in (name, shared[name]) if below < place[source] < above]
    if not in_order or len(fits) != 1:
        raise ValueError(
            f"graph payload: '{name}' is the name of a feature of layer 0 and of an error, and the link to {target} "
            f"may come from either; write the file with a circuit-tracer that calls errors '{shared[name]}'"
        )
    return fits[0]
