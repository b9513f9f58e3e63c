"""Pictures: plain dicts in, self-contained HTML out. Imports nothing else of this package."""

from .page import graph_page, notebook_html
from .schema import GRAPH_SCHEMA, validate_payload

__all__ = ["GRAPH_SCHEMA", "graph_page", "notebook_html", "validate_payload"]
