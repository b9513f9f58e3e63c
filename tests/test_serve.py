"""`pullback serve`: which files of a folder are graphs, where notes go, and how it starts and ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import pullback as pb
from pullback import serve
from tests.viz import payloads


@pytest.fixture(scope="module")
def graph() -> pb.Graph:
    model, sets = pb.zoo.load("exact"), pb.zoo.transcoders("exact")
    return pb.attribute(model, sets, torch.tensor([1, 2, 3]))


@pytest.fixture
def folder(tmp_path: Path, graph: pb.Graph) -> Path:
    (tmp_path / "below" / ".hidden").mkdir(parents=True)
    graph.save(tmp_path / "below" / "native.safetensors")
    graph.save(tmp_path / "below" / ".hidden" / "native.safetensors")
    save_file({"W_enc": torch.zeros(2, 2)}, tmp_path / "layer_0.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"short")
    (tmp_path / "plain.json").write_text(json.dumps(payloads.capital()))
    (tmp_path / "graph-metadata.json").write_text("{}")
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("")
    return tmp_path


def test_graphs_of_a_folder(folder: Path, graph: pb.Graph) -> None:
    shelf = serve.GraphFolder(folder)
    assert shelf.names() == ["below/native.safetensors", "plain.json"]
    native = shelf.payload("below/native.safetensors")
    assert len(native["nodes"]) == graph.n_nodes
    assert native["metadata"]["slug"] == "native"
    assert shelf.payload("plain.json") == payloads.capital()
    assert [shelf.prompt(name) for name in shelf.names()] == [graph.meta["prompt"], ""]
    assert not shelf.has_cards
    assert shelf.card(0, 0) is None


def test_notes_lie_beside_the_graph_and_leave_it_alone(folder: Path) -> None:
    shelf = serve.GraphFolder(folder)
    before = (folder / "plain.json").read_bytes()
    params = {"pinnedIds": [], "supernodes": [["x", "E_100_0"]], "clerps": "[]"}
    shelf.save_notes("plain.json", params)
    assert json.loads((folder / "plain.json.notes.json").read_text()) == {"qParams": params}
    assert shelf.names() == ["below/native.safetensors", "plain.json"]
    assert shelf.payload("plain.json")["qParams"] == payloads.capital()["qParams"] | params
    assert (folder / "plain.json").read_bytes() == before


def test_a_changed_file_is_read_again(folder: Path) -> None:
    shelf = serve.GraphFolder(folder)
    shelf.payload("plain.json")
    (folder / "plain.json").write_text(json.dumps(payloads.bare()))
    os.utime(folder / "plain.json", ns=(1, 1))
    assert shelf.payload("plain.json")["metadata"]["prompt_tokens"] == ["hello"]


def test_a_graph_too_large_for_a_page_is_pruned(folder: Path, graph: pb.Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "MOST_EDGES", graph.n_edges - 1)
    assert len(serve.GraphFolder(folder).payload("below/native.safetensors")["links"]) < graph.n_edges


def test_features_are_read_from_their_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    cards = tmp_path_factory.mktemp("cards")
    (cards / "1_2.json").write_text('{"density": 0.5}')
    shelf = serve.GraphFolder(folder, cards)
    assert shelf.has_cards
    assert shelf.card(1, 2) == {"density": 0.5}


def test_no_folder_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pullback.cli import main

    assert main(["serve", str(tmp_path / "none")]) == 2
    assert "is no folder" in capsys.readouterr().err


def test_a_taken_port_is_a_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pullback.cli import main

    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", str(folder), "--port", str(taken.getsockname()[1])]) == 2
    assert "--port 0 takes a free one" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_command_says_its_address_and_ends_on_interrupt(folder: Path) -> None:
    # A test run in the background passes on that it ignores interrupts.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from pullback.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "serve", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            with urllib.request.urlopen(said.split(" at ")[1].split()[0], timeout=60) as answer:
                assert b"plain.json" in answer.read()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert said.startswith("2 graphs of ")
    assert process.returncode == 0
    assert "notes are saved" in out
    assert err == ""
