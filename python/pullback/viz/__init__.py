"""Pictures: plain dicts in, self-contained HTML out. Imports nothing else of this package."""

from .cards import CARD_SCHEMA, validate_card
from .dashboard import DASHBOARD_SCHEMA, dashboard_page, validate_dashboard
from .diff import diff_page
from .page import graph_page, notebook_html
from .schema import GRAPH_SCHEMA, validate_payload

__all__ = [
    "CARD_SCHEMA",
    "DASHBOARD_SCHEMA",
    "GRAPH_SCHEMA",
    "dashboard_page",
    "diff_page",
    "graph_page",
    "notebook_html",
    "validate_card",
    "validate_dashboard",
    "validate_payload",
]
