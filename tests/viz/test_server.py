"""The server of graphs: what it hands out, what it writes, and what it refuses."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from tools.browser import binary

from pullback.viz.server import MAX_NOTES, GraphServer
from tests.viz import browser, payloads

CAPITAL = payloads.capital()
FEATURE = next(node for node in CAPITAL["nodes"] if node["kind"] == "feature")
LAYER, NUMBER = map(int, FEATURE["node_id"].split("_")[:2])


class Memory:
    """A shelf without files."""

    has_cards = True

    def __init__(self) -> None:
        self.graphs = {"one.json": CAPITAL, "sub/two & <3>.json": payloads.bare()}
        self.saved: dict[str, Mapping[str, Any]] = {}

    def names(self) -> list[str]:
        return list(self.graphs)

    def prompt(self, name: str) -> str:
        return "a <prompt>" if name == "one.json" else ""

    def payload(self, name: str) -> dict[str, Any]:
        graph = self.graphs[name]
        return graph | {"qParams": graph["qParams"] | dict(self.saved.get(name, {}))}

    def save_notes(self, name: str, params: Mapping[str, Any]) -> None:
        self.saved[name] = params

    def card(self, layer: int, feature: int) -> dict[str, Any] | None:
        return {"density": 0.25} if (layer, feature) == (LAYER, NUMBER) else None


@contextmanager
def serving(shelf: Any) -> Iterator[GraphServer]:
    with GraphServer(shelf) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def server() -> Iterator[GraphServer]:
    with serving(Memory()) as running:
        yield running


def ask(server: GraphServer, path: str, body: Any = None, **headers: str) -> tuple[int, str, Mapping[str, str]]:
    """Status, text and headers; a body, JSON unless bytes, makes it a POST. The path is sent as it stands."""
    link = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if data is not None:
        given = {"Content-Type": "application/json"} | given
    link.request("GET" if data is None else "POST", path, body=data, headers=given)
    answer = link.getresponse()
    text = answer.read().decode()
    link.close()
    return answer.status, text, dict(answer.headers)


def test_listens_on_this_machine_only(server: GraphServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.server_port}/"


def test_lists_graphs_and_opens_them(server: GraphServer) -> None:
    status, text, headers = ask(server, "/")
    assert status == 200
    assert 'href="/graph/one.json"' in text
    assert text.count("<p>a &lt;prompt&gt;</p>") == 1
    assert 'href="/graph/sub%2Ftwo%20%26%20%3C3%3E.json">sub/two &amp; &lt;3&gt;.json</a>' in text
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    status, text, _ = ask(server, "/graph/sub%2Ftwo%20%26%20%3C3%3E.json")
    assert status == 200
    assert "connect-src 'self'" in text
    assert '"notes":"/notes/sub%2Ftwo%20%26%20%3C3%3E.json"' in text
    assert '"cards":"/cards"' in text
    status, text, _ = ask(server, "/compare?a=one.json&b=one.json")
    assert status == 200
    assert '"compared":' in text


def test_gives_cards(server: GraphServer) -> None:
    status, text, headers = ask(server, f"/cards/{LAYER}/{NUMBER}")
    assert (status, json.loads(text)) == (200, {"density": 0.25})
    assert headers["Content-Type"].startswith("application/json")
    assert ask(server, f"/cards/{LAYER}/{NUMBER + 1}")[0] == 404


@pytest.mark.parametrize(
    "path",
    [
        "/graph/../../etc/passwd",
        "/graph/..%2F..%2Fetc%2Fpasswd",
        "/graph/%2e%2e%2fone.json",
        "/graph//etc/passwd",
        "/graph/%2Fetc%2Fpasswd",
        "/graph/one.json%00.html",
        "/graph/one.json/",
        "/graph/",
        "/notes/one.json",
        "/cards/0/../../x",
        "/cards/-1/2",
        "/cards/%D9%A3/2",
        "/cards/1/2/3",
        "/compare?a=one.json",
        "/compare?a=one.json&b=..%2Fone.json",
        "/assets/main.js",
        "//one.json",
        "/%2e%2e/",
    ],
)
def test_nothing_else_is_found(server: GraphServer, path: str) -> None:
    status, text, _ = ask(server, path)
    assert status == 404
    assert "root:" not in text


def test_notes_are_taken_and_come_back(server: GraphServer) -> None:
    params = {"pinnedIds": [FEATURE["node_id"]], "supernodes": [["x", FEATURE["node_id"]]], "clerps": "[]", "extra": 1}
    assert ask(server, "/notes/one.json", {"qParams": params})[0] == 200
    assert server.shelf.saved["one.json"] == {key: params[key] for key in ("pinnedIds", "supernodes", "clerps")}  # type: ignore[attr-defined]
    assert f'"supernodes":[["x","{FEATURE["node_id"]}"]]' in ask(server, "/graph/one.json")[1]
    server.shelf.saved.clear()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/notes/one.json", {"qParams": {}}, {"Origin": "http://evil.example"}, 403),
        ("/notes/one.json", {"qParams": {}}, {"Origin": "null"}, 403),
        ("/notes/one.json", {"qParams": {}}, {"Host": "evil.example"}, 403),
        ("/notes/one.json", {"qParams": {}}, {"Content_Type": "text/plain"}, 415),
        ("/notes/one.json", b"not json", {}, 400),
        ("/notes/one.json", {"qParams": {"supernodes": "all"}}, {}, 400),
        ("/notes/one.json", {}, {}, 400),
        ("/notes/one.json", b"", {}, 413),
        ("/notes/one.json", b"{}", {"Content_Length": str(MAX_NOTES + 1)}, 413),
        ("/notes/..%2Fone.json", {"qParams": {}}, {}, 404),
        ("/notes/other.json", {"qParams": {}}, {}, 404),
        ("/graph/one.json", {"qParams": {}}, {}, 404),
    ],
)
def test_other_writes_are_refused(
    server: GraphServer, path: str, body: Any, headers: dict[str, str], status: int
) -> None:
    assert ask(server, path, body, **headers)[0] == status
    assert server.shelf.saved == {}  # type: ignore[attr-defined]


def test_other_names_of_this_machine_get_nothing(server: GraphServer) -> None:
    assert ask(server, "/", Host="evil.example")[0] == 403
    assert ask(server, "/", Host=f"localhost:{server.server_port}")[0] == 200


def test_what_goes_wrong_is_said() -> None:
    class Broken(Memory):
        def payload(self, name: str) -> dict[str, Any]:
            raise ValueError("this file is no graph")

    with serving(Broken()) as server:
        assert ask(server, "/graph/one.json")[:2] == (500, "this file is no graph")


@pytest.mark.skipif(binary() is None, reason="no browser")
def test_page_saves_notes_and_asks_for_cards() -> None:
    other = next(n["node_id"] for n in CAPITAL["nodes"] if n["kind"] == "feature" and n["node_id"] > FEATURE["node_id"])
    script = f"""
    setTo("#threshold", "1"); await soon();
    const card = async (id) => {{
      point("click", id);
      for (let k = 0; k < 50 && $("#card[aria-busy]"); k++) await soon();
      return $("#card").innerText;
    }};
    const found = await card("{FEATURE["node_id"]}"), none = await card("{other}");
    key("p");
    for (let k = 0; k < 50 && !document.documentElement.dataset.saved; k++) await soon();
    return {{ found, none, said: $("#said").hidden }};
    """
    with serving(Memory()) as server, browser.tab() as tab:
        tab.open(f"{server.url}graph/one.json")
        got = tab.run(script)
        tab.problems = [p for p in tab.problems if "404" not in p]  # the browser notes a card that is not there
        assert server.shelf.saved["one.json"]["pinnedIds"] == [other]  # type: ignore[attr-defined]
        tab.open("about:blank")
        tab.open(f"{server.url}graph/one.json")
        pinned = tab.run('return $$("#pinned .go").length;')
    assert "25.0% of tokens" in got["found"]
    assert "no card" in got["none"]
    assert got["said"]
    assert pinned == 1
