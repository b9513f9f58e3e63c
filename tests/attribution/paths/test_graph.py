"""Path graphs as tables, files and pages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import pullback as pb
from pullback import viz, zoo
from pullback.attribution.paths import PathGraph
from pullback.attribution.paths.nodes import KINDS
from pullback.cli import main
from pullback.serve import GraphFolder
from tests.viz.browser import drive

PROMPT = "the capital of the state containing dallas is"


@pytest.fixture(scope="module")
def graph() -> PathGraph:
    return pb.greedy_paths(zoo.load("tiny-mix"), zoo.transcoders("tiny-mix"), PROMPT, "austin", num_iters=4).graph()


def test_tables_say_what_the_graph_is(graph: PathGraph) -> None:
    nodes, edges = graph.to_pandas()
    assert list(nodes.columns) == ["id", "kind", "layer", "pos", "index", "token", "activation", "contribution"]
    assert list(edges.columns) == ["source", "target", "weight"]
    root = nodes.iloc[0]
    assert (root.id, root.kind, root.pos) == ("5_174_8", "logit", 8)
    incoming = edges.groupby("target").weight.sum()
    contributions = nodes.set_index("id").contribution
    assert incoming.to_dict() == pytest.approx(contributions[incoming.index].to_dict(), rel=1e-4, abs=1e-4)
    assert graph.edge(edges.source[0], edges.target[0]) == pytest.approx(edges.weight[0])
    with pytest.raises(KeyError):
        graph.edge("nothing", graph.ids[0])


def test_a_file_is_read_back_as_it_was(graph: PathGraph, tmp_path: Path) -> None:
    for one in (graph, graph.sum_over_tokens()):
        one.to_json(tmp_path / "paths.json", labels={one.ids[1]: "mine"})
        read = PathGraph.from_json(tmp_path / "paths.json")
        assert read.ids == one.ids
        assert read.meta == json.loads(json.dumps(one.meta))
        for a, b in zip(read.nodes.columns(), one.nodes.columns(), strict=True):
            assert torch.equal(a, b)
        for name in ("contribution", "activation", "sources", "targets", "weights"):
            assert torch.equal(getattr(read, name), getattr(one, name))
    assert json.loads((tmp_path / "paths.json").read_text())["nodes"][1]["clerp"] == "mine"
    with pytest.raises(ValueError, match=r"not of PathGraph\.to_json"):
        PathGraph.from_json(
            pb.attribute(zoo.load("exact"), zoo.transcoders("exact"), torch.tensor([1, 2])).to_neuronpedia()
        )
    with pytest.raises(ValueError, match="graph of paths"):
        pb.Graph.from_neuronpedia(tmp_path / "paths.json")


def test_a_folder_of_graphs_may_have_some_of_paths(graph: PathGraph, tmp_path: Path) -> None:
    graph.to_json(tmp_path / "paths.json")
    shelf = GraphFolder(tmp_path)
    assert shelf.names() == ["paths.json"]
    assert "1_head_0_7" in viz.graph_page(shelf.payload("paths.json"))


def test_positions_can_be_summed(graph: PathGraph) -> None:
    model, sets = zoo.load("exact", dtype=torch.float64), zoo.transcoders("exact", dtype=torch.float64)
    whole = pb.greedy_paths(model, sets, torch.tensor([1, 5, 5, 2]), 3, num_iters=3, num_branches=60).graph()
    summed = whole.sum_over_tokens()
    assert summed.check() < 1e-10
    assert summed.n_nodes < whole.n_nodes
    head = next(n for n, kind in enumerate(summed.nodes.kind.tolist()) if KINDS[kind] == "head")
    layer, _, number = summed.ids[head].split("_")
    parts = [
        float(c)
        for name, c in zip(whole.ids, whole.contribution, strict=True)
        if name.startswith(f"{layer}_head_{number}_")
    ]
    assert float(summed.contribution[head]) == pytest.approx(sum(parts), abs=1e-12)
    assert summed.nodes.pos.unique().tolist() == [-1]
    assert summed.contribution[0] == whole.contribution[0]
    assert summed.sum_over_tokens() is summed


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_page_draws_heads_and_sums(graph: PathGraph, tmp_path: Path) -> None:
    head = next(name for name in graph.ids if "head" in name and not name.startswith(("errors", "biases", "pruned")))
    got = drive(
        graph.to_html(tmp_path / "page.html"),
        f"""
        await soon();
        const shown = shownIds();
        point("click", "{head}"); await soon();
        const kinds = node("{head}").className.baseVal;
        return {{ shown, kinds, panel: $("#panel").textContent, legend: $("#legend").textContent }};
        """,
        tmp_path,
    )
    biases = {name for name in graph.ids if name.startswith("biases")}
    assert set(got["shown"]) == set(graph.ids) - biases
    layer, _, number, _ = head.split("_")
    assert f"L{layer} head {number}" in got["panel"]
    assert "not followed" in got["panel"]
    assert "contribution" in got["panel"]
    assert "attention head" in got["legend"]
    assert "head" in got["kinds"].split()
    assert (tmp_path / "page.html").is_file()
    assert "iframe" in graph._repr_html_()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_page_has_no_rows_that_nothing_can_stand_in(graph: PathGraph, tmp_path: Path) -> None:
    model, sets = pb.zoo.load("tiny-mix"), pb.zoo.transcoders("tiny-mix")
    script = 'return [...document.querySelectorAll("#axis-inner span")].map((span) => span.textContent);'
    for root, names in ((pb.FeatureTarget(2, 3, 690), ["L2", "L1", "L0"]), ("texas", ["out", "L3", "L2", "L1", "L0"])):
        paths = pb.greedy_paths(model, sets, "dallas is in", root, filters=["kind=head", "kind=feature,layer=0"])
        assert drive(paths.graph().to_html(), script, tmp_path) == names
    assert drive(graph.to_html(), script, tmp_path) == ["out", "L3", "L2", "L1", "L0", "emb"]


def test_the_command_lists_paths_and_writes_their_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(tmp_path / "paths.html"), str(tmp_path / "paths.json")]
    assert (
        main(["paths", "tiny-mix", PROMPT, "--root", "austin", "--iters", "3", "--branches", "4", "--out", *files]) == 0
    )
    said = capsys.readouterr().out
    assert "5_174_8 'austin' <- 1_524_8 'is' <- 1_head_0_7 'dallas'\n" in said
    assert "every node sums to" in said
    graph = PathGraph.from_json(files[1])
    assert graph.check() < 1e-4
    assert graph.meta["search"]["num_branches"] == 4
    assert Path(files[0]).read_text(encoding="utf-8").startswith("<!")
    assert main(["paths", "tiny-mix", PROMPT, "--iters", "3", "--branches", "4"]) == 0
    unasked = capsys.readouterr().out
    assert unasked.splitlines()[:5] == said.splitlines()[:5]
    assert "the root is the likeliest token, 'austin'" in unasked
    for arguments, sentence in (
        (["--root", "austin", "--filter", "layer~3"], "is no comparison"),
        (["--root", "austin", "--out", "paths.png"], "--out takes files"),
        (["--root", "austin", "--capped", "--out", files[1]], "make no graph"),
        (["--root-feature", "9", "0", "0"], "there are transcoders at layers"),
        (["--position", "99"], "lies outside the prompt"),
    ):
        assert main(["paths", "tiny-mix", PROMPT, *arguments]) == 2
        assert sentence in capsys.readouterr().err
    options = [
        "--root-difference",
        "austin",
        "sacramento",
        "--capped",
        "--filter",
        "kind=feature",
        "--filter",
        "kind=head",
    ]
    assert main(["paths", "tiny-mix", PROMPT, *options]) == 0
    assert "D_0_8 'austin - sacramento' <- " in capsys.readouterr().out
