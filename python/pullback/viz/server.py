"""A small server of graphs for one reader on this machine, on nothing but the standard library.

It hands out what a `Shelf` has and writes what the reader adds to a graph through it; it knows no files. A name that
the shelf does not list is not found, whatever it looks like. Requests that come from other sites' pages are refused.
"""

from __future__ import annotations

import html
import json
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol
from urllib.parse import parse_qs, quote, unquote, urlsplit

from .cards import validate_card
from .diff import diff_page
from .document import read_asset
from .page import graph_page
from .schema import GRAPH_SCHEMA, check_schema

MAX_NOTES = 16 * 2**20
NOTES = ("pinnedIds", "supernodes", "clerps")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'"


class Shelf(Protocol):
    """Where the graphs are."""

    def names(self) -> list[str]:
        """The graphs there are now."""
        ...

    def prompt(self, name: str) -> str:
        """What the list says of a graph besides its name; "" is nothing."""
        ...

    def payload(self, name: str) -> dict[str, Any]:
        """A graph as JSON, with the notes that were saved for it in its qParams."""
        ...

    def save_notes(self, name: str, params: Mapping[str, Any]) -> None:
        """Keep these notes for the graph."""
        ...

    def card(self, layer: int, feature: int) -> dict[str, Any] | None:
        """What is known of a feature."""
        ...

    @property
    def has_cards(self) -> bool:
        """Whether anything is known of any feature."""
        ...


class GraphServer(ThreadingHTTPServer):
    """Serves `shelf` on 127.0.0.1; port 0 takes a free one. `serve_forever` until `shutdown`."""

    daemon_threads = True
    # The browser keeps connections open; an ended server must give its port back at once.
    allow_reuse_address = True

    def __init__(self, shelf: Shelf, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.shelf = shelf
        self.writing = threading.Lock()

    @property
    def url(self) -> str:
        """What to open in a browser."""
        return f"http://127.0.0.1:{self.server_port}/"

    @property
    def hosts(self) -> tuple[str, str]:
        """What a request's Host may be: a page that has other names point here gets nothing."""
        return f"127.0.0.1:{self.server_port}", f"localhost:{self.server_port}"


class _NotFound(Exception):
    pass


class _Handler(BaseHTTPRequestHandler):
    server: GraphServer  # pyright: ignore[reportIncompatibleVariableOverride]
    server_version = "pullback"
    timeout = 60  # seconds for a request to arrive

    def do_GET(self) -> None:
        """The list of graphs, a graph's page, two graphs' page, or a card."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """The notes of a graph."""
        self._answer(self._post)

    def _answer(self, act: Any) -> None:
        try:
            if self.headers.get("Host") not in self.server.hosts:
                return self._send("This server answers to this machine only.", HTTPStatus.FORBIDDEN)
            act(urlsplit(self.path))
        except ConnectionError:
            self.close_connection = True  # the reader has gone
        except _NotFound:
            self._send("There is no such page; the list of graphs is at /.", HTTPStatus.NOT_FOUND)
        except (ValueError, OSError, KeyError, TypeError) as error:
            self._send(str(error), HTTPStatus.INTERNAL_SERVER_ERROR)

    def _get(self, url: Any) -> None:
        shelf = self.server.shelf
        match url.path.split("/")[1:]:
            case [""]:
                self._send_page(_list({name: shelf.prompt(name) for name in shelf.names()}), POLICY)
            case ["graph", name]:
                known = self._known(name)
                served = {"notes": f"/notes/{quote(known, safe='')}"} | ({"cards": "/cards"} if shelf.has_cards else {})
                self._send_page(graph_page(shelf.payload(known), served=served))
            case ["compare"]:
                asked = parse_qs(url.query)
                a, b = (self._known(quote(asked.get(side, [""])[0], safe="")) for side in "ab")
                self._send_page(diff_page(shelf.payload(a), shelf.payload(b)))
            case ["cards", layer, feature] if (
                layer.isascii() and layer.isdigit() and feature.isascii() and feature.isdigit()
            ):
                card = shelf.card(int(layer), int(feature))
                if card is None:
                    raise _NotFound
                validate_card(card, f"feature card {layer}_{feature}")
                self._send(json.dumps(card, allow_nan=False), HTTPStatus.OK, "application/json")
            case _:
                raise _NotFound

    def _post(self, url: Any) -> None:
        origin = self.headers.get("Origin")
        if origin is not None and origin not in [f"http://{host}" for host in self.server.hosts]:
            return self._send("Notes are taken from this server's pages only.", HTTPStatus.FORBIDDEN)
        # A form of another site cannot send this type without being asked for leave.
        if self.headers.get_content_type() != "application/json":
            return self._send("Notes are JSON.", HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        match url.path.split("/")[1:]:
            case ["notes", name]:
                known = self._known(name)
            case _:
                raise _NotFound
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 < length <= MAX_NOTES:
            return self._send(f"Notes take up to {MAX_NOTES} bytes.", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        try:
            params = _notes(self.rfile.read(length))
        except ValueError as error:
            return self._send(str(error), HTTPStatus.BAD_REQUEST)
        with self.server.writing:
            self.server.shelf.save_notes(known, params)
        return self._send("{}", HTTPStatus.OK, "application/json")

    def _known(self, quoted: str) -> str:
        name = unquote(quoted)
        if name not in self.server.shelf.names():
            raise _NotFound
        return name

    def _send_page(self, text: str, policy: str | None = None) -> None:
        self._send(text, HTTPStatus.OK, "text/html", policy)

    def _send(self, text: str, status: HTTPStatus, kind: str = "text/plain", policy: str | None = None) -> None:
        body = text.encode("utf-8", "replace")
        if self.command == "POST" and status is not HTTPStatus.OK:
            self.close_connection = True  # what is left of the body is not read
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        if policy:
            self.send_header("Content-Security-Policy", policy)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal belongs to the one who started the server."""


def _notes(body: bytes) -> dict[str, Any]:
    """The notes in a request, of the form that a graph's qParams have."""
    sent = json.loads(body)
    schema = {
        "type": "object",
        "required": ["qParams"],
        "properties": {"qParams": GRAPH_SCHEMA["properties"]["qParams"]},
    }
    check_schema(sent, schema, "", "notes")
    return {key: sent["qParams"][key] for key in NOTES if key in sent["qParams"]}


def _list(prompts: dict[str, str]) -> str:
    page = read_asset("list.html")
    for part, text in {
        "none": "hidden" if prompts else "",
        "some": "" if prompts else "hidden",
        "two": "" if len(prompts) > 1 else "hidden",
        "rows": "\n".join(_row(*one) for one in prompts.items()),
    }.items():
        page = page.replace(f"{{{{{part}}}}}", text)
    return page


def _row(name: str, prompt: str) -> str:
    shown, address = html.escape(name), quote(name, safe="")
    sides = "".join(
        f'<td><input type="radio" name="{side}" value="{shown}" aria-label="{shown} as {side.upper()}" required></td>'
        for side in "ab"
    )
    said = f"<p>{html.escape(prompt)}</p>" if prompt else ""
    return f'<tr><td><a href="/graph/{address}">{shown}</a>{said}</td>{sides}</tr>'
