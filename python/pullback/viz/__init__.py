"""Pictures: plain dicts in, self-contained HTML out. Imports nothing else of this package."""

from .cards import CARD_SCHEMA, validate_card
from .diff import diff_page
from .page import graph_page, notebook_html
from .schema import GRAPH_SCHEMA, validate_payload

__all__ = [
    "CARD_SCHEMA",
    "GRAPH_SCHEMA",
    "diff_page",
    "graph_page",
    "notebook_html",
    "validate_card",
    "validate_payload",
]
