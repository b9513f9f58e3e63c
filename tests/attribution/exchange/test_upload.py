"""Uploading, against a server on this machine that answers as Neuronpedia does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from pullback.attribution.exchange.upload import upload_neuronpedia
from tests.attribution.test_graph import by_hand


class Neuronpedia(BaseHTTPRequestHandler):
    def answer(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def read(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def do_POST(self) -> None:
        seen: list[Any] = self.server.seen  # type: ignore[attr-defined]
        body = json.loads(self.read())
        seen.append((self.path, dict(self.headers), body))
        host = f"http://127.0.0.1:{self.server.server_address[1]}"
        if self.headers["x-api-key"] != "key":
            self.answer(401, {"error": "who are you?"})
        elif self.path == "/api/graph/signed-put":
            self.answer(200, {"url": f"{host}/bucket/g.json?signature=s", "putRequestId": "id-1"})
        elif body == {"putRequestId": "id-1"} and seen[-2][0].startswith("/bucket/"):
            self.answer(200, {"url": "https://www.neuronpedia.org/hand/graph?slug=x"})
        else:
            self.answer(400, {"error": "nothing was put"})

    def do_PUT(self) -> None:
        self.server.seen.append((self.path, dict(self.headers), self.read()))  # type: ignore[attr-defined]
        self.answer(200, {})

    def log_message(self, *args: Any) -> None: ...


@pytest.fixture
def server() -> Iterator[Any]:
    with HTTPServer(("127.0.0.1", 0), Neuronpedia) as running:
        running.seen = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def address(server: Any) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_three_steps(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURONPEDIA_API_KEY", "key")
    url = upload_neuronpedia(by_hand(), server=address(server), scan="gemma-2-2b", slug="mine")
    assert url == "https://www.neuronpedia.org/hand/graph?slug=x"
    (first, _, asked), (put, headers, body), (last, *_) = server.seen
    assert (first, put, last) == ("/api/graph/signed-put", "/bucket/g.json?signature=s", "/api/graph/save-to-db")
    assert asked == {"filename": "mine.json", "contentLength": len(body), "contentType": "application/json"}
    assert not any(name.lower() == "x-api-key" for name in headers), "the key is for Neuronpedia, not for the store"
    payload = json.loads(body)
    assert (payload["metadata"]["scan"], payload["metadata"]["slug"]) == ("gemma-2-2b", "mine")
    assert payload["links"] == by_hand().to_neuronpedia()["links"]


def test_slugs_differ_unless_given(server: Any) -> None:
    payload = by_hand().to_neuronpedia()
    upload_neuronpedia(payload, api_key="key", server=address(server))
    assert json.loads(server.seen[1][2])["metadata"]["slug"].startswith("x-y-")
    assert payload["metadata"]["slug"] == "x-y", "the caller's payload stays"


def test_what_goes_wrong_is_said(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEURONPEDIA_API_KEY", raising=False)
    with pytest.raises(ValueError, match="api_key is needed"):
        upload_neuronpedia(by_hand(), server=address(server))
    with pytest.raises(ValueError, match=r"refused \(401 .*who are you"):
        upload_neuronpedia(by_hand(), api_key="wrong", server=address(server))
    with pytest.raises(OSError, match="cannot be reached"):
        upload_neuronpedia(by_hand(), api_key="key", server="http://127.0.0.1:1")
