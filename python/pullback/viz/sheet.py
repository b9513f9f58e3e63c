"""A sheet of features to rate, as one HTML page that needs nothing but a browser, and keeps the ratings in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .cards import CARD_SCHEMA, validate_card
from .document import document
from .schema import check_schema

RATINGS = ("interpretable", "maybe", "uninterpretable")
RATINGS_FORMAT = "pullback-ratings"
STYLES = ("base.css", "cards.css", "head.css", "sheet.css")
SCRIPTS = ("text.js", "dom.js", "cardparts.js", "sheet.js")

SHEET_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Sheet of features to rate",
    "type": "object",
    "required": ["sheet", "items"],
    "properties": {
        "sheet": {"type": "string", "minLength": 1},
        "items": {"type": "array", "minItems": 1, "items": CARD_SCHEMA},
    },
}


def sheet_page(content: Mapping[str, Any], *, title: str = "Which features can you make sense of?") -> str:
    """The whole page as text; write it to a file with encoding="utf-8" and open it.

    Args:
        content: `sheet`, under whose name the browser keeps the ratings, and `items`, cards with examples only.

    Raises:
        ValueError: with the path of the first offence.
    """
    check_schema(content, SHEET_SCHEMA, "", "sheet")
    for i, item in enumerate(content["items"]):
        validate_card(item, f"sheet: items[{i}]")
    data = {**content, "title": title, "format": RATINGS_FORMAT, "scale": list(RATINGS)}
    return document("sheet.html", data, title, styles=STYLES, scripts=SCRIPTS)
