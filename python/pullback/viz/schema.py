"""The graph JSON of circuit-tracer and Neuronpedia, with our extras: a JSON schema, and the same rules by hand.

`GRAPH_SCHEMA` is for tools that read schemas. `validate_payload` needs no dependency, names the offending path, and
also checks what a schema cannot say: ids are unique, links end at nodes, numbers are finite, positions lie in the
prompt. Keys not listed here are allowed everywhere, since each tool of the field adds its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

KINDS = (
    *("embedding", "position", "feature", "head", "skip", "error", "bias", "own", "logit"),
    *("attention_feature", "attention_error"),
)

# Cumulative sums of float32 shares may end a little above one.
MAX_INFLUENCE = 1.001

_NUMBER_OR_NULL = {"type": ["number", "null"]}
_STRINGS = {"type": "array", "items": {"type": "string"}}
_INDEX = {"type": "integer", "minimum": 0}
_ATTENTION = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["layer", "head", "query_pos", "key_pos", "carried", "pattern", "score", "pairs"],
        "properties": {
            **dict.fromkeys(("layer", "head", "query_pos", "key_pos"), _INDEX),
            **dict.fromkeys(("carried", "pattern", "score"), {"type": "number"}),
            "against": {"type": ["integer", "null"], "minimum": 0},
            "pairs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["query", "key", "value"],
                    "properties": {
                        "query": {"type": "string"},
                        "key": {"type": "string"},
                        "value": {"type": "number"},
                    },
                },
            },
        },
    },
}
_FRACTION_OR_NULL = {"type": ["number", "null"], "minimum": 0, "maximum": MAX_INFLUENCE}

GRAPH_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Attribution graph",
    "type": "object",
    "required": ["metadata", "qParams", "nodes", "links"],
    "properties": {
        "metadata": {
            "type": "object",
            "required": ["slug", "scan", "prompt_tokens", "prompt"],
            "properties": {
                "slug": {"type": "string"},
                "scan": {"type": "string"},
                "prompt": {"type": "string"},
                "prompt_tokens": _STRINGS | {"minItems": 1},
                "schema_version": {"const": 1},
                "scores": {
                    "type": ["object", "null"],
                    "properties": {"replacement": _NUMBER_OR_NULL, "completeness": _NUMBER_OR_NULL},
                },
                "check_max_error": _NUMBER_OR_NULL,
                "attention": _ATTENTION,
            },
        },
        "qParams": {
            "type": "object",
            "properties": {
                "pinnedIds": _STRINGS,
                "supernodes": {"type": "array", "items": _STRINGS | {"minItems": 1}},
                "clickedId": {"type": ["string", "null"]},
                "pruningThreshold": _FRACTION_OR_NULL,
                "clerps": {"type": ["string", "array", "null"]},
            },
        },
        "nodes": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"],
                "properties": {
                    "node_id": {"type": "string", "minLength": 1},
                    "feature": {"type": ["integer", "null"]},
                    "layer": {"type": ["string", "integer"]},
                    "ctx_idx": {"type": "integer", "minimum": 0},
                    "feature_type": {"type": "string"},
                    "jsNodeId": {"type": "string"},
                    "clerp": {"type": ["string", "null"]},
                    "kind": {"enum": list(KINDS)},
                    "token_prob": _NUMBER_OR_NULL,
                    "is_target_logit": {"type": ["boolean", "null"]},
                    "influence": _FRACTION_OR_NULL,
                    "activation": _NUMBER_OR_NULL,
                    "preactivation": _NUMBER_OR_NULL,
                },
            },
        },
        "links": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["source", "target", "weight"],
                "properties": {
                    "source": {"type": "string"},
                    "target": {"type": "string"},
                    "weight": {"type": "number"},
                },
            },
        },
    },
}


def validate_payload(payload: Any) -> None:
    """Refuse a payload that the page, or another viewer of this format, would misread.

    Raises:
        ValueError: with the path of the first offence, what was expected and what was found, as in
            "graph payload: nodes[3].ctx_idx must be an integer, got '2'".
    """
    check_schema(payload, GRAPH_SCHEMA, "", "graph payload")
    n_tokens = len(payload["metadata"]["prompt_tokens"])
    first: dict[str, int] = {}
    for i, node in enumerate(payload["nodes"]):
        node_id = node["node_id"]
        if node_id in first:
            fail(
                "graph payload",
                f"nodes[{i}].node_id",
                f"must be unique, but {node_id!r} is already nodes[{first[node_id]}]"
                " (error nodes need ids of the form {layer}_-1_{pos})",
            )
        first[node_id] = i
        if node["ctx_idx"] >= n_tokens:
            fail(
                "graph payload",
                f"nodes[{i}].ctx_idx",
                f"must be a position of the {n_tokens} prompt tokens, got {node['ctx_idx']}",
            )
    for i, entry in enumerate(payload["metadata"].get("attention", ())):
        for name in ("query_pos", "key_pos", "against"):
            if (entry.get(name) or 0) >= n_tokens:
                reason = f"must be a position of the {n_tokens} prompt tokens, got {entry[name]}"
                fail("graph payload", f"metadata.attention[{i}].{name}", reason)
    for i, link in enumerate(payload["links"]):
        for end in ("source", "target"):
            if link[end] not in first:
                fail("graph payload", f"links[{i}].{end}", f"must be the node_id of a node, got {link[end]!r}")


def check_schema(value: Any, schema: Mapping[str, Any], path: str, what: str) -> None:
    """Apply the part of JSON schema that the schemas here use; floats must be finite as well."""
    if "type" in schema:
        kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        if not any(_IS[kind](value) for kind in kinds):
            fail(what, path, f"must be {' or '.join(_NAME[kind] for kind in kinds)}, got {_show(value)}")
    if "enum" in schema and value not in schema["enum"]:
        fail(what, path, f"must be one of {', '.join(schema['enum'])}, got {_show(value)}")
    if "const" in schema and (isinstance(value, bool) or value != schema["const"]):
        fail(what, path, f"must be {schema['const']!r}, got {_show(value)}")
    if isinstance(value, str):
        if len(value) < schema.get("minLength", 0):
            fail(what, path, "must not be empty")
    elif isinstance(value, Mapping):
        for key in schema.get("required", ()):
            if key not in value:
                fail(what, f"{path}.{key}" if path else key, "is required but missing")
        for key, sub in schema.get("properties", {}).items():
            if key in value:
                check_schema(value[key], sub, f"{path}.{key}" if path else key, what)
    elif isinstance(value, Sequence):
        if len(value) < schema.get("minItems", 0):
            fail(what, path, f"must have at least {schema['minItems']} item, got {len(value)}")
        for i, item in enumerate(value):
            check_schema(item, schema.get("items", {}), f"{path}[{i}]", what)
    elif _is_number(value):
        if not math.isfinite(value):
            fail(what, path, f"must be finite, got {value}")
        if value < schema.get("minimum", -math.inf) or value > schema.get("maximum", math.inf):
            low, high = schema.get("minimum", "-inf"), schema.get("maximum", "inf")
            fail(what, path, f"must lie between {low} and {high}, got {value}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return _is_number(value) and (isinstance(value, int) or value.is_integer())


_IS = {
    "object": lambda v: isinstance(v, Mapping),
    "array": lambda v: isinstance(v, (list, tuple)),
    "string": lambda v: isinstance(v, str),
    "number": _is_number,
    "integer": _is_integer,
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
}
_NAME = {
    "object": "an object",
    "array": "an array",
    "string": "a string",
    "number": "a number",
    "integer": "an integer",
    "boolean": "a boolean",
    "null": "null",
}


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def fail(what: str, path: str, reason: str) -> NoReturn:
    """Raise the ValueError that says where `what` is wrong."""
    raise ValueError(f"{what}: {path or 'the payload'} {reason}")
