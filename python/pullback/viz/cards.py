"""Feature cards: what is known of a feature beside one graph, as plain dicts in which every key may be missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .schema import check_schema, fail

_NUMBERS = {"type": "array", "items": {"type": "number"}}
_TOKENS = {"type": "array", "items": {"type": ["string", "array"]}}  # a token, or a token and its number

_EXAMPLES = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["tokens", "activations"],
        "properties": {
            "tokens": {"type": "array", "items": {"type": "string"}},
            "activations": _NUMBERS,
            "train_token_ind": {"type": ["integer", "null"], "minimum": 0},
        },
    },
}

CARD_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Feature card",
    "type": "object",
    "properties": {
        "examples": _EXAMPLES,
        "sampled": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "examples"],
                "properties": {"name": {"type": "string"}, "examples": _EXAMPLES},
            },
        },
        "top_logits": _TOKENS,
        "bottom_logits": _TOKENS,
        "deembedding": _TOKENS,
        "density": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "histogram": {
            "type": ["object", "null"],
            "required": ["counts"],
            "properties": {"counts": _NUMBERS, "edges": _NUMBERS},
        },
        "quantiles": {"type": ["array", "null"], "items": {"type": ["number", "array"]}},
    },
}


def validate_card(card: Any, name: str = "feature card") -> None:
    """Refuse a card that the page would misread.

    Raises:
        ValueError: with the path of the first offence, what was expected and what was found, as in
            "feature card: examples[0].activations must have one number a token, 3 tokens, got 2".
    """
    check_schema(card, CARD_SCHEMA, "", name)
    _check_examples(card.get("examples", ()), "examples", name)
    for i, group in enumerate(card.get("sampled", ())):
        _check_examples(group["examples"], f"sampled[{i}].examples", name)
    for key in ("top_logits", "bottom_logits", "deembedding"):
        for i, item in enumerate(card.get(key, ())):
            if not isinstance(item, str):
                check_schema(item, {"minItems": 2}, f"{key}[{i}]", name)
                check_schema(item[0], {"type": "string"}, f"{key}[{i}][0]", name)
                check_schema(item[1], {"type": "number"}, f"{key}[{i}][1]", name)
    histogram = card.get("histogram") or {}
    if "edges" in histogram and len(histogram["edges"]) != len(histogram["counts"]) + 1:
        n = len(histogram["counts"])
        fail(name, "histogram.edges", f"must be {n + 1} ends of {n} bins, got {len(histogram['edges'])}")


def _check_examples(examples: Sequence[Mapping[str, Any]], path: str, name: str) -> None:
    for i, example in enumerate(examples):
        tokens, activations, at = example["tokens"], example["activations"], example.get("train_token_ind")
        if len(activations) != len(tokens):
            reason = f"must have one number a token, {len(tokens)} tokens, got {len(activations)}"
            fail(name, f"{path}[{i}].activations", reason)
        if at is not None and at >= len(tokens):
            fail(name, f"{path}[{i}].train_token_ind", f"must be one of the {len(tokens)} tokens, got {at}")


def feature_name(node: Mapping[str, Any]) -> str:
    """A node's id without its position: of a feature, "{layer}_{feature}"."""
    return node["node_id"].removesuffix(f"_{node['ctx_idx']}")


def cards_of(
    nodes: Sequence[Mapping[str, Any]], cards: Mapping[str, Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
    """The cards of a graph's features, checked: by node id where there is one for the node, else by feature.

    Raises:
        ValueError: if a card is not one, or none is of this graph.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for node in nodes:
        for name in {node["node_id"], feature_name(node)} - found.keys():
            card = cards.get(name)
            if card is not None:
                validate_card(card, f"feature card {name!r}")
                found[name] = card
    if cards and not found:
        raise ValueError(
            f"feature cards: none of the {len(cards)} is of a feature of this graph; name them by node id or as"
            f' "{{layer}}_{{feature}}", as {feature_name(nodes[-1]) if nodes else "0_7"!r}'
        )
    return found
