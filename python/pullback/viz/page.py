"""An attribution graph as one HTML page that needs nothing but a browser, and the same page inside a notebook cell.

`SCRIPTS` are put together around the graph, in this order, by `document`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .cards import cards_of
from .document import document, framed
from .schema import validate_payload

_ORDER = (
    "text", "dom", "model", "state", "groups", "notes", "compare", "layout", "links", "nodes", "labels",
    "cardparts", "cards", "attention", "panel", "grouppanel", "controls", "view", "export", "main",
)  # fmt: skip
SCRIPTS = tuple(f"{name}.js" for name in _ORDER)
STYLES = ("base.css", "cards.css", "style.css", "extras.css")


def graph_page(
    payload: dict[str, Any],
    *,
    title: str | None = None,
    cards: Mapping[str, Mapping[str, Any]] | None = None,
    served: Mapping[str, str] | None = None,
) -> str:
    """The whole page as text; write it to a file with encoding="utf-8" and open it.

    Args:
        payload: a graph in the JSON form of circuit-tracer and Neuronpedia (`GRAPH_SCHEMA`), with `kind` and
            `preactivation` on the nodes if known. It is not modified.
        title: heading and window title; the prompt if None.
        cards: what is known of features (`CARD_SCHEMA`), by node id or by "{layer}_{feature}"; those of features that
            are not in the graph are left out. Anything with a `get` will do, so cards may be read when asked for.
        served: addresses of a server on the page's own origin: "notes" takes what the reader adds, and "cards" gives
            cards. For `pullback.viz.server`; a page in a file has none.

    Raises:
        ValueError: if the payload or a card does not have its form (`validate_payload`, `validate_card`), or if no
            card is of a feature of the graph.
    """
    validate_payload(payload)
    data = packed(payload, title)
    if cards is not None:
        data["cards"] = cards_of(payload["nodes"], cards)
    if served is not None:
        data["served"] = dict(served)
    return assemble(data, heading_of(payload, title))


def notebook_html(payload: dict[str, Any], height: int | str = 640, *, title: str | None = None) -> str:
    """An iframe that holds the page, for a notebook's `_repr_html_`.

    Args:
        payload: as for `graph_page`.
        height: of the frame, in pixels, or a CSS length.
        title: as for `graph_page`.

    Raises:
        ValueError: if the payload does not have the form of `GRAPH_SCHEMA`.
    """
    return framed(graph_page(payload, title=title), "Attribution graph", height)


def heading_of(payload: dict[str, Any], title: str | None) -> str:
    """What the page is called: `title`, else the prompt, else the slug."""
    return title if title is not None else payload["metadata"]["prompt"].strip() or payload["metadata"]["slug"]


def packed(payload: dict[str, Any], title: str | None) -> dict[str, Any]:
    """The payload with its links as three columns of node numbers and weights: a quarter of the size to parse."""
    number = {node["node_id"]: i for i, node in enumerate(payload["nodes"])}
    links = payload["links"]
    columns = {
        "source": [number[link["source"]] for link in links],
        "target": [number[link["target"]] for link in links],
        "weight": [short(link["weight"]) for link in links],
    }
    return {
        "title": title,
        "metadata": payload["metadata"],
        "qParams": payload["qParams"],
        "nodes": payload["nodes"],
        "links": columns,
    }


def short(weight: float) -> float:
    """Seven digits: float32, and no more text than that."""
    return float(f"{weight:.7g}")


def assemble(data: dict[str, Any], heading: str) -> str:
    """The page around its data; what speaks to a server is in it only if the data names one."""
    served = "served" in data
    return document(
        "page.html",
        data,
        heading,
        styles=STYLES,
        scripts=(*SCRIPTS[:-1], *(["served.js"] if served else []), SCRIPTS[-1]),
        allowed="img-src blob:; " + ("connect-src 'self'; " if served else ""),
    )
