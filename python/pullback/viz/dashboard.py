"""A dashboard of features as one HTML page that needs nothing but a browser: plain dicts in, text out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .cards import CARD_SCHEMA, validate_card
from .document import document, framed
from .schema import check_schema, fail

STYLES = ("base.css", "cards.css", "head.css", "dashboard.css")
SCRIPTS = ("text.js", "dom.js", "cardparts.js", "weightparts.js", "dashboard.js")

_NUMBER, _ID = {"type": "number"}, {"type": "integer", "minimum": 0}
_NUMBERS = {"type": "array", "items": _NUMBER}


def _list_of(**properties: Any) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "object", "required": list(properties), "properties": properties}}


_FEATURE = {
    "type": "object",
    "required": ["layer", "feature"],
    "properties": CARD_SCHEMA["properties"]
    | {
        "layer": _ID,
        "feature": _ID,
        "bottom_deembedding": CARD_SCHEMA["properties"]["deembedding"],
        "beside": {"type": ["number", "null"]},
        "neighbours": _list_of(feature=_ID, phi=_NUMBER, share=_NUMBER, density=_NUMBER),
        "heads": _list_of(layer=_ID, head=_ID, norm=_NUMBER),
        "pullbacks": _list_of(layer=_ID, feature=_ID, weight=_NUMBER),
        "feeds": _list_of(layer=_ID, feature=_ID, weight=_NUMBER),
        "prompts": _list_of(
            tokens={"type": "array", "items": {"type": "string"}}, activations=_NUMBERS, substituted=_NUMBERS
        ),
    },
}
DASHBOARD_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Dashboard of features",
    "type": "object",
    "required": ["model", "layer", "features"],
    "properties": {
        "model": {"type": "string"},
        "layer": _ID,
        "source": {"type": ["object", "null"]},
        "blind": {
            "type": ["object", "null"],
            "required": ["revealed", "steps"],
            "properties": {
                "revealed": {"type": "boolean"},
                "steps": _list_of(step={"type": "string"}, what={"type": "string"}),
            },
        },
        "features": {"type": "array", "minItems": 1, "items": _FEATURE},
    },
}


def validate_dashboard(content: Any) -> None:
    """Refuse what the page would misread.

    Raises:
        ValueError: with the path of the first offence, what was expected and what was found.
    """
    check_schema(content, DASHBOARD_SCHEMA, "", "dashboard")
    for i, feature in enumerate(content["features"]):
        validate_card(feature, f"dashboard: features[{i}]")
        for j, prompt in enumerate(feature.get("prompts", ())):
            for name in ("activations", "substituted"):
                if len(prompt[name]) != len(prompt["tokens"]):
                    path = f"features[{i}].prompts[{j}].{name}"
                    fail("dashboard", path, f"must have one number a token, got {len(prompt[name])}")


def dashboard_page(content: Mapping[str, Any], *, title: str | None = None) -> str:
    """The whole page as text; write it to a file with encoding="utf-8" and open it.

    Args:
        content: `DASHBOARD_SCHEMA`.
        title: heading and window title; the model and its layer if None.

    Raises ValueError as `validate_dashboard`.
    """
    validate_dashboard(content)
    heading = title if title is not None else f"{content['model']}, layer {content['layer']}"
    return document("dashboard.html", {**content, "title": heading}, heading, styles=STYLES, scripts=SCRIPTS)


def notebook_dashboard(content: Mapping[str, Any], height: int | str = 640) -> str:
    """An iframe that holds the page, for a notebook's `_repr_html_`."""
    return framed(dashboard_page(content), "Dashboard of features", height)
