"""The page as text: self-contained, inert data, escaped titles, a faithful copy of the graph."""

from __future__ import annotations

import copy
import html
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from pullback.viz import graph_page, notebook_html
from pullback.viz.page import SCRIPTS
from tests.viz import payloads

CAPITAL = payloads.capital()
DATA = re.compile(r'<script id="graph-data" type="application/json">(.*?)</script>', re.DOTALL)


class Tags(HTMLParser):
    """Collects every start tag with its attributes, as an HTML parser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def data_of(page: str) -> dict[str, Any]:
    found = DATA.search(page)
    assert found
    return json.loads(found[1])


def test_page_refers_to_nothing_outside() -> None:
    page = graph_page(CAPITAL)
    shell = DATA.sub("", page)
    outside = r"https?:|//[a-z0-9-]+\.[a-z]|@import|url\(|\bfetch\b|XMLHttpRequest|WebSocket|import\("
    assert not re.search(outside, shell)
    for tag, attributes in Tags(page).tags:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base"}
        assert not {"src", "href", "srcset", "action"} & attributes.keys()
    assert "default-src 'none'" in page


def test_page_contains_every_script_whole_and_in_order() -> None:
    page = graph_page(CAPITAL)
    opening = [
        page.index(f"// {line}")
        for line in (
            "How tokens and numbers",
            "Elements, files, what the browser",
            "The graph: reads",
            "What the reader has chosen",
            "Supernodes: nodes of their own",
            "Notes: the pins",
            "Two graphs in one",
            "Geometry:",
            "Links on two canvases",
            "Nodes as SVG symbols",
            "Text that stands on",
            "Parts of a card",
            "The card of a feature",
            "Of a circuit: the entries",
            "The side panel",
            "Supernodes in the side panel",
            "What the reader can do",
            "The window onto the graph",
            "The graph as a picture",
            "Puts it together",
        )
    ]
    assert opening == sorted(opening)
    assert len(opening) == len(SCRIPTS)
    assert [tag for tag, _ in Tags(page).tags].count("script") == 2
    assert "{{" not in DATA.sub("", page)


def test_data_is_the_graph() -> None:
    before = copy.deepcopy(CAPITAL)
    data = data_of(graph_page(CAPITAL))
    assert before == CAPITAL
    assert data["nodes"] == CAPITAL["nodes"]
    assert data["metadata"] == CAPITAL["metadata"]
    assert data["qParams"] == CAPITAL["qParams"]
    ids = [node["node_id"] for node in data["nodes"]]
    for k, link in enumerate(CAPITAL["links"]):
        assert ids[data["links"]["source"][k]] == link["source"]
        assert ids[data["links"]["target"][k]] == link["target"]
        assert data["links"]["weight"][k] == pytest.approx(link["weight"], rel=1e-6)


def test_awkward_text_cannot_leave_the_data() -> None:
    graph = payloads.awkward()
    page = graph_page(graph, title="</title><script>alert('&')</script>{{data}}")
    assert data_of(page)["metadata"] == graph["metadata"]
    assert page.isascii() or "<" not in DATA.search(page)[1]  # type: ignore[index]
    tags = [tag for tag, _ in Tags(page).tags]
    assert tags.count("script") == 2
    assert "img" not in tags
    assert "<title>&lt;/title&gt;&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;{{data}}</title>" in page


def test_lone_surrogates_can_be_written() -> None:
    graph = payloads.bare(["\ud83d", "a"])
    page = graph_page(graph)
    assert page.encode("utf-8")
    assert data_of(page)["metadata"]["prompt_tokens"][0] == "\ud83d"


def test_title_is_the_prompt_unless_given() -> None:
    assert "<title>&lt;bos&gt; the capital of the state containing dallas is</title>" in graph_page(CAPITAL)
    assert "<title>Mine</title>" in graph_page(CAPITAL, title="Mine")
    nameless = payloads.bare([" "])
    assert "<title>graph</title>" in graph_page(nameless)


def test_refuses_what_it_would_misread() -> None:
    graph = payloads.bare()
    del graph["nodes"][0]["ctx_idx"]
    with pytest.raises(ValueError, match=r"nodes\[0\].ctx_idx is required"):
        graph_page(graph)
    with pytest.raises(ValueError, match=r"nodes\[0\].ctx_idx is required"):
        notebook_html(graph)


def test_notebook_frame_holds_the_same_page() -> None:
    frame = notebook_html(CAPITAL, height=500)
    ((tag, attributes),) = Tags(frame).tags
    assert tag == "iframe"
    assert attributes["srcdoc"] == graph_page(CAPITAL)
    assert attributes["sandbox"] == "allow-scripts allow-downloads"
    assert "height:500px" in (attributes["style"] or "")
    assert "height:70vh" in notebook_html(CAPITAL, height="70vh")
    assert html.unescape(frame).count("<iframe") == 1


def test_large_graph_stays_small() -> None:
    graph = payloads.large(n_nodes=1000, n_links=20_000)
    assert len(graph_page(graph)) < 0.6 * len(json.dumps(graph))
