"""Pictures: plain dicts in, self-contained HTML out. Imports nothing else of this package."""

from .cards import CARD_SCHEMA, validate_card
from .dashboard import DASHBOARD_SCHEMA, dashboard_page, validate_dashboard
from .diff import diff_page
from .page import graph_page, notebook_html
from .schema import GRAPH_SCHEMA, validate_payload
from .sheet import SHEET_SCHEMA, sheet_page
from .sweep import sweep_page

__all__ = [
    "CARD_SCHEMA",
    "DASHBOARD_SCHEMA",
    "GRAPH_SCHEMA",
    "SHEET_SCHEMA",
    "dashboard_page",
    "diff_page",
    "graph_page",
    "notebook_html",
    "sheet_page",
    "sweep_page",
    "validate_card",
    "validate_dashboard",
    "validate_payload",
]
