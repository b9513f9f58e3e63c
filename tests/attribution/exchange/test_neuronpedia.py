"""Graph JSON in and out, with what other tools write; pins and supernodes of files and URLs; uploading."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pullback as pb
from pullback.attribution import Graph
from pullback.attribution.exchange.dense import dense
from pullback.attribution.exchange.pairing import cantor, uncantor
from pullback.attribution.exchange.view import GraphView
from pullback.lens import as_lens
from tests import models
from tests.attribution.test_graph import by_hand
from tests.attribution.test_identities import _dense, tokens_of
from tests.viz import payloads


@pytest.fixture(scope="module")
def graph() -> Graph:
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    return pb.attribute(lens, models.random_set(lens), tokens_of(6), max_n_logits=3)


@pytest.mark.parametrize("pruned", [False, True])
def test_what_is_written_is_read_whole(graph: Graph, tmp_path: Path, pruned: bool) -> None:
    graph = graph.prune() if pruned else graph
    payload = graph.to_neuronpedia(tmp_path / "g.json", labels={graph.node_ids()[9]: "a label"}, creator="somebody")
    back = Graph.from_neuronpedia(tmp_path / "g.json")
    assert back.node_ids() == graph.node_ids()
    assert torch.equal(_dense(back), _dense(graph))
    assert torch.equal(back.dropped, graph.dropped)
    assert back.check() == graph.check() < 1e-9
    assert pb.GraphCollection([back]).mean().weights.dtype == torch.float64
    assert back.answers() == graph.answers()
    assert back.to_neuronpedia() == payload
    back.save(tmp_path / "g.safetensors")
    assert Graph.load(tmp_path / "g.safetensors").to_neuronpedia() == payload


def _a_feature(payload: dict[str, Any]) -> dict[str, Any]:
    return next(node for node in payload["nodes"] if node["feature_type"] == "cross layer transcoder")


def foreign() -> dict[str, Any]:
    """The graph made by hand as circuit-tracer writes it: no bias, no kinds, unsorted, its own ids for errors."""
    payload = by_hand().to_neuronpedia()
    nodes = [n for n in payload["nodes"] if n["kind"] != "bias"]
    for node in nodes:
        for ours in ("kind", "preactivation", "dropped"):
            node.pop(ours, None)
        if node["feature_type"] == "mlp reconstruction error":
            node["node_id"] = f"0_{node['layer']}_{node['ctx_idx']}"
    links = [link for link in payload["links"] if "bias" not in link["source"]]
    for link in links:
        link["source"] = link["source"].replace("0_-1_1", "0_0_1")
    metadata = {key: payload["metadata"][key] for key in ("slug", "scan", "prompt_tokens", "prompt", "schema_version")}
    return {"metadata": metadata, "qParams": payload["qParams"], "nodes": nodes[::-1], "links": links}


def test_circuit_tracers_json() -> None:
    graph = Graph.from_neuronpedia(foreign())
    flip = [0, 1, 2, 3, 4, 5, 7, 6]  # its logits come the other way round
    assert torch.equal(dense(graph).adjacency[flip][:, flip], dense(by_hand()).adjacency)
    assert graph.scores() == pytest.approx(by_hand().scores())
    assert (graph.meta["tokens"], graph.meta["n_layers"]) == ([7, 8], 1)
    assert sorted(graph.answers()) == [("p", 0.75), ("q", 0.25)]
    assert torch.isnan(torch.tensor(graph.check()))
    assert "0_-1_1" in graph.node_ids()
    assert Graph.from_neuronpedia(graph.to_neuronpedia()).node_ids() == graph.node_ids()


def colliding(*weights: float) -> dict[str, Any]:
    """An error of layer 1 that bears the name of feature 1 of layer 0, with links to the first logit."""
    payload = foreign()
    for node in payload["nodes"]:
        if node["feature_type"] == "logit":
            node |= {"layer": "3", "node_id": "3" + node["node_id"][1:]}
        elif node["node_id"] == "0_3_1":
            node |= {"node_id": "0_1_1", "feature": cantor(0, 1)}
        elif node["node_id"] == "0_0_1":
            node |= {"node_id": "0_1_1", "layer": "1"}
    ends = {"0_3_1": "0_1_1", "2_2_1": "3_2_1", "2_4_1": "3_4_1"}
    links = [{**link, "target": ends.get(link["target"], link["target"])} for link in payload["links"]]
    payload["links"] = [link for link in links if link["source"] not in ("0_3_1", "0_0_1")]
    payload["links"] += [{"source": "0_1_1", "target": "3_2_1", "weight": w} for w in weights]
    return payload


def test_names_that_an_error_shares_with_a_feature() -> None:
    graph = Graph.from_neuronpedia(colliding(0.5, 3.0))  # the error stands first among the nodes
    assert (graph.edge("0_1_1", "3_2_1"), graph.edge("1_-1_1", "3_2_1")) == (3.0, 0.5)
    assert graph.edge("E_7_0", "0_1_1") == 4.0, "an error has no sources"
    # The error stands before feature 5 among the nodes, feature 1 behind it; links stand in the order of their sources.
    behind, before = colliding(3.0), colliding(0.5)
    before["links"].insert(0, before["links"].pop())
    assert Graph.from_neuronpedia(behind).edge("0_1_1", "3_2_1") == 3.0
    assert Graph.from_neuronpedia(before).edge("1_-1_1", "3_2_1") == 0.5
    within = colliding()
    for node in within["nodes"]:
        if node["node_id"] == "0_5_1":
            node |= {"node_id": "1_5_1", "layer": "1", "feature": cantor(1, 5)}
    within["links"] = [{"source": "0_1_1", "target": "1_5_1", "weight": 2.0}]
    assert Graph.from_neuronpedia(within).edge("0_1_1", "1_5_1") == 2.0, "an error of layer 1 feeds later layers only"
    alone = colliding(3.0)
    alone["links"] = [link for link in alone["links"] if link["target"] != "3_2_1" or link["source"] == "0_1_1"]
    with pytest.raises(ValueError, match="may come from either"):
        Graph.from_neuronpedia(alone)


@pytest.mark.parametrize("token", ['"', 'a" (p=0.1) "b', "(p=", "", "\n", " )"])
def test_logit_labels_may_hold_anything(token: str) -> None:
    graph = by_hand()
    graph.meta["logit_labels"] = [token, "q"]
    assert Graph.from_neuronpedia(graph.to_neuronpedia()).meta["logit_labels"] == [token, "q"]


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 200), st.integers(0, 2**24))
def test_pairs_are_told_apart(layer: int, feature: int) -> None:
    assert uncantor(cantor(layer, feature)) == (layer, feature)


def test_features_with_other_ids_are_decoded() -> None:
    payload = foreign()
    for part in (payload["nodes"], payload["links"]):
        for item in part:
            item |= {key: "node of b" for key in ("node_id", "source", "target") if item.get(key) == "0_5_1"}
    payload["qParams"]["pinnedIds"] = ["node of b"]
    graph = Graph.from_neuronpedia(payload)
    assert graph.view.pinned == ("0_5_1",)
    assert graph.edge("0_5_1", "2_4_1") == 2.0


@pytest.mark.parametrize("name", ["capital", "awkward"])
def test_payloads_of_the_page(name: str) -> None:
    payload = getattr(payloads, name)()
    graph = Graph.from_neuronpedia(payload)
    again = graph.to_neuronpedia()
    assert {n["node_id"] for n in again["nodes"]} == {n["node_id"] for n in payload["nodes"]}
    weights = [{(e["source"], e["target"]): e["weight"] for e in part["links"]} for part in (again, payload)]
    assert weights[0] == pytest.approx(weights[1])
    assert again["qParams"]["supernodes"] == payload["qParams"]["supernodes"]
    assert again["metadata"]["prompt_tokens"] == payload["metadata"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda p: p["nodes"][0].update(feature_type="crosscoder"), "of type 'crosscoder'"),
        (lambda p: p.pop("links"), "links is required"),
        (lambda p: p["links"].append({"source": "x", "target": "y", "weight": 1.0}), "must be the node_id of a node"),
        (lambda p: p["nodes"].append(p["nodes"][3]), "must be unique"),
        (lambda p: p["qParams"].update(supernodes="[[1"), "qParams.supernodes must be an array"),
        (lambda p: p["links"].append({"source": "2_2_1", "target": "0_3_1", "weight": 1.0}), "backwards"),
        (lambda p: p["links"].append(p["links"][0]), "the link from .* to .* is there more than once"),
        (lambda p: _a_feature(p).update(layer="x"), "has no layer 'x'; it is a number"),
    ],
)
def test_other_payloads_are_refused(change: Any, sentence: str) -> None:
    payload = copy.deepcopy(foreign())
    change(payload)
    with pytest.raises(ValueError, match=sentence):
        Graph.from_neuronpedia(payload)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "g.json").write_text(json.dumps(foreign())[:-10])
    with pytest.raises(ValueError, match="not readable JSON"):
        Graph.from_neuronpedia(tmp_path / "g.json")
    (tmp_path / "g.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds no graph but list"):
        Graph.from_neuronpedia(tmp_path / "g.json")
    with pytest.raises(ValueError, match="is a folder; name a file in it"):
        Graph.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        Graph.from_neuronpedia(tmp_path / "none.json")


def url(**query: Any) -> str:
    return "https://www.neuronpedia.org/m/graph?" + urlencode({"slug": "s", **query})


def test_marks_of_a_url() -> None:
    address = url(
        pinnedIds="2_2_1,0_3_1,E_7_0,9_9_9",
        supernodes=json.dumps([["a & b", "0_3_1", "9_9_9"], ["a & b", "0_5_1"], ["gone", "9_9_9"]]),
        clerps=json.dumps([["0_5_1", "by id"], [f"0_{cantor(0, 3)}_1", "by pair"], ["77", "unknown"]]),
        pruningThreshold=0.6,
        clickedId="0_3_1",
    )
    graph = by_hand().with_view(address)
    assert graph.view == GraphView(
        pinned=("2_2_1", "0_3_1", "E_7_0"),
        supernodes=(("a & b", ("0_3_1",)), ("a & b", ("0_5_1",))),
        labels={"0_5_1": "by id", "0_3_1": "by pair"},
        pruning_threshold=0.6,
        clicked="0_3_1",
    )
    payload = graph.to_neuronpedia(labels={"0_5_1": "renamed"})
    assert payload["qParams"]["pruningThreshold"] == 0.6
    assert {n["node_id"]: n["clerp"] for n in payload["nodes"] if n["kind"] == "feature"} == {
        "0_3_1": "by pair",
        "0_5_1": "renamed",
    }
    assert '"pinnedIds":["2_2_1","0_3_1","E_7_0","0_5_1"]' in graph.to_html(pinned=["0_5_1", "0_3_1"])
    kept = graph.prune(0.5).view
    assert kept.pinned == ("2_2_1", "0_3_1", "E_7_0"), "marks stay with the graph, wherever it is shown"
    assert Graph.from_neuronpedia(payload).view.supernodes == graph.view.supernodes


def test_labels_by_the_number_of_a_feature() -> None:
    for key in (str(cantor(0, 3)), "0_3_1"):
        assert by_hand().with_view(url(clerps=json.dumps([[key, "name"]]))).view.labels == {"0_3_1": "name"}
    high = Graph.from_neuronpedia(payloads.capital())
    feature = next(n for n in high.node_ids() if n.startswith("2_") and "_-1_" not in n and "bias" not in n)
    layer, f, pos = map(int, feature.split("_"))
    legacy = f"{layer}_{layer * 100_000 + f}_{pos}"
    assert high.with_view(url(clerps=json.dumps([[legacy, "old"]]))).view.labels[feature] == "old"


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("https://www.neuronpedia.org/m/graph?slug=s", "marks nothing"),
        (url(supernodes="[[1"), "supernodes is no JSON"),
        (url(pruningThreshold="high"), "not readable"),
        (url(supernodes="[[]]"), "not readable"),
        (url(pinnedIds="9_9_9"), "of another graph"),
    ],
)
def test_other_urls_get_a_sentence(address: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        by_hand().with_view(address)
