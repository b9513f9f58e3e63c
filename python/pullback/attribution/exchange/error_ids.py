"""The ids of error nodes in a graph JSON.

Older files call the error of layer l at position p `0_{l}_{p}`, which is also the name of feature l of layer 0 there.
Here, as in later ones, it is `{l}_-1_{p}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ERROR_TYPE = "mlp reconstruction error"


def with_own_error_ids(payload: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, str]]:
    """The payload with errors named in the new way, and {old id: new id} of those that no feature shared.

    Where a feature and an error share a name, links are told apart by what an error can be: never a target, and a
    source for later layers only; of two links from one name to one target, the feature's comes first, as it is written.
    Raises ValueError where that does not decide.
    """
    nodes, given = payload.get("nodes"), payload.get("links")
    if not _objects(nodes) or not _objects(given) or not all({"source", "target"} <= set(link) for link in given):
        return payload, {}  # not of the form: the validation says why
    errors = {node["node_id"]: f"{node['layer']}_-1_{node['ctx_idx']}" for node in nodes if _old(node)}
    if not errors:
        return payload, {}
    others = {node.get("node_id") for node in nodes if not _old(node)}
    shared, renamed = set(errors) & others, {old: new for old, new in errors.items() if old not in others}
    named = [{**node, "node_id": errors[node["node_id"]]} if _old(node) else node for node in nodes]
    layers = {node["node_id"]: node.get("layer") for node in named}
    seen: set[tuple[str, str]] = set()
    pairs = [(link["source"], link["target"]) for link in given]
    links = []
    for link, (source, target) in zip(given, pairs, strict=True):
        source = renamed.get(source, source)
        if source in shared:
            source = _of_two(source, errors[source], target, layers, again=(source, target) in seen, pairs=pairs)
        seen.add((link["source"], target))
        links.append({**link, "source": source})
    return {**payload, "nodes": named, "links": links}, renamed


def _objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, Mapping) for item in value)


def _old(node: Mapping[str, Any]) -> bool:
    old = f"0_{node.get('layer')}_{node.get('ctx_idx')}"
    return node.get("feature_type") == ERROR_TYPE and node.get("node_id") == old


def _of_two(
    name: str, error: str, target: str, layers: Mapping[str, Any], *, again: bool, pairs: list[tuple[str, str]]
) -> str:
    """Whether a link from `name` comes from the feature of that name or from the error."""
    if int(layers[target]) <= int(layers[error]):
        return name
    if pairs.count((name, target)) == 2:
        return error if again else name
    raise ValueError(
        f"graph payload: '{name}' is the name of a feature of layer 0 and of the error of layer {layers[error]}, and "
        f"the link to {target} may come from either; write the file with a circuit-tracer that calls errors '{error}'"
    )
