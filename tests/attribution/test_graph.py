"""What one asks of a graph: influence and pruning by hand, limits, files, JSON, tables."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import jsonschema
import pytest
import torch
from safetensors.torch import load_file, save_file

import pullback as pb
from pullback.attribution import Graph
from pullback.attribution import influence as inf
from pullback.attribution import nodes as k
from pullback.attribution.exchange.pairing import cantor
from pullback.lens import as_lens
from pullback.viz.schema import GRAPH_SCHEMA, validate_payload
from tests import models
from tests.attribution.test_identities import _dense, assert_same_edges, tokens_of


@pytest.fixture(scope="module")
def graph() -> Graph:
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    return pb.attribute(lens, models.random_set(lens), tokens_of(6), max_n_logits=3)


def by_hand() -> Graph:
    """Token 0, token 1, features a and b (layer 0), error, bias, logit 0 (p .75), logit 1 (p .25).

    a <- 4 tok0;  b <- 1 tok0 + 1 tok1 + 2 err;  logit0 <- 3 a - 1 b + 5 bias;  logit1 <- 2 b.
    """
    kinds = [k.EMBEDDING, k.EMBEDDING, k.FEATURE, k.FEATURE, k.ERROR, k.BIAS, k.LOGIT, k.LOGIT]
    layer = [-1, -1, 0, 0, 0, 0, 1, 1]
    pos = [0, 1, 1, 1, 1, 1, 1, 1]
    feature = [7, 8, 3, 5, -1, 0, 2, 4]
    activation = [1, 1, 4, 4, 1, 1, 0.75, 0.25]
    edges = [(2, 0, 4), (3, 0, 1), (3, 1, 1), (3, 4, 2), (6, 2, 3), (6, 3, -1), (6, 5, 5), (7, 3, 2)]
    pre = torch.zeros(8).index_add(
        0, torch.tensor([t for t, _, _ in edges]), torch.tensor([float(w) for *_, w in edges])
    )
    counts = torch.bincount(torch.tensor([t for t, _, _ in edges]), minlength=8)
    return Graph(
        nodes=k.Nodes(
            torch.tensor(kinds, dtype=torch.int8),
            torch.tensor(layer, dtype=torch.int32),
            torch.tensor(pos, dtype=torch.int32),
            torch.tensor(feature),
            torch.tensor(activation),
            pre,
        ),
        indptr=torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]),
        sources=torch.tensor([s for _, s, _ in edges], dtype=torch.int32),
        weights=torch.tensor([float(w) for *_, w in edges]),
        dropped=torch.zeros(8),
        meta={
            "prompt": "x y",
            "str_tokens": ["x", "y"],
            "tokens": [7, 8],
            "model_name": "hand",
            "n_layers": 1,
            "logit_labels": ["p", "q"],
        },
    )


def test_influence_and_scores_by_hand() -> None:
    hand = by_hand()
    # Rows without bias: logit0 splits 3/4, 1/4 over a, b; b splits 1/4, 1/4, 1/2 over tokens and error.
    a, b = 0.75 * 0.75, 0.75 * 0.25 + 0.25
    expected = [a + b / 4, b / 4, a, b, b / 2, 0.75 * 5 / 4, 0, 0]
    assert torch.allclose(hand.influence(), torch.tensor(expected))
    scores = hand.scores()
    assert scores.replacement == pytest.approx((a + b / 2) / (a + b))
    carried = [a + b / 4, b / 4, a, b, b / 2, 0, 0.75, 0.25]
    assert scores.completeness == pytest.approx((sum(carried) - 0.5 * b) / sum(carried))
    # With bias, logit0 splits 3/9, 1/9, 5/9.
    a, b = 0.75 / 3, 0.75 / 9 + 0.25
    assert torch.allclose(hand.influence(bias=True)[:6], torch.tensor([a + b / 4, b / 4, a, b, b / 2, 0.75 * 5 / 9]))


def test_pruning_by_hand_keeps_sums() -> None:
    hand = by_hand()
    ids = hand.node_ids()
    assert ids == ["E_7_0", "E_8_1", "0_3_1", "0_5_1", "0_-1_1", "0_bias_mlp_1", "2_2_1", "2_4_1"]
    # Sorted influence: tok0 .671, a .5625, b .4375, err .219, tok1 .109 of 2.0: 0.8 needs the first three.
    small = hand.prune(0.8, 1.0)
    assert small.node_ids() == ["E_7_0", "E_8_1", "0_3_1", "0_5_1", "0_bias_mlp_1", "2_2_1", "2_4_1"]
    assert small.check() == 0.0
    assert small.dropped[small.node_ids().index("0_5_1")] == 2.0, "the error's edge was cut and is accounted for"
    assert hand.prune(0.0, 1.0).node_ids() == ["E_7_0", "E_8_1", "2_2_1", "2_4_1"]
    assert hand.prune(1.0, 1.0).n_edges == hand.n_edges
    with pytest.raises(ValueError, match="node_threshold must lie in"):
        hand.prune(1.5)


def test_pruned_graphs_still_sum(graph: Graph) -> None:
    for node_threshold in (0.0, 0.3, 0.8, 1.0):
        for edge_threshold in (0.0, 0.5, 0.98, 1.0):
            small = graph.prune(node_threshold, edge_threshold)
            assert small.check() <= 1e-9
            assert bool(small.of_kind(k.LOGIT).sum() == graph.of_kind(k.LOGIT).sum())
            has_out = torch.zeros(small.n_nodes, dtype=torch.bool).index_fill(0, small.sources.long(), True)
            assert bool(has_out[small.of_kind(k.FEATURE, k.ERROR)].all())
    influence = (graph.influence() * inf.counts_in_scores(graph)).tolist()
    matters = {i for i, w in zip(graph.node_ids(), influence, strict=True) if w > 0}
    assert matters <= set(graph.prune(1.0, 1.0).node_ids())


def test_higher_thresholds_keep_supersets(graph: Graph) -> None:
    kept = [set(graph.prune(t, 1.0).node_ids()) for t in (0.2, 0.5, 0.8, 0.95)]
    assert all(a <= b for a, b in zip(kept, kept[1:], strict=False))


@pytest.mark.parametrize("limit", [0, 5, 40, 10_000])
def test_node_limit_keeps_the_influential_and_accounts_for_the_rest(limit: int) -> None:
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    sets = models.random_set(lens)
    full = pb.attribute(lens, sets, tokens_of(6))
    small = pb.attribute(lens, sets, tokens_of(6), max_feature_nodes=limit, batch_size=4, update_interval=2)
    n = int(small.of_kind(k.FEATURE).sum())
    assert n == min(limit, int(full.of_kind(k.FEATURE).sum()))
    assert small.check() <= 1e-9
    if n < int(full.of_kind(k.FEATURE).sum()) and n:
        assert float(small.dropped.abs().max()) > 0
        kept = {i for i, kind in zip(small.node_ids(), small.nodes.kind.tolist(), strict=True) if kind == k.FEATURE}
        order = full.influence().argsort(descending=True)
        best = [full.node_ids()[i] for i in order.tolist() if full.nodes.kind[i] == k.FEATURE][: max(1, n // 4)]
        assert set(best) <= kept, "the most influential features must be among the chosen"
    if limit == 10_000:
        assert_same_edges(small, full, 1e-12)


def test_zero_positions_drops_what_stands_there() -> None:
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    sets = models.random_set(lens)
    small = pb.attribute(lens, sets, tokens_of(6), zero_positions=slice(0, 1))
    feature_positions = small.nodes.pos[small.of_kind(k.FEATURE)]
    assert int(feature_positions.min()) == 1
    first_errors = small.nodes.activation[small.of_kind(k.ERROR) & (small.nodes.pos == 0)]
    assert float(first_errors.abs().max()) == 0.0
    assert small.check() <= 1e-9


def test_chosen_targets_by_id_and_by_word() -> None:
    lens = as_lens(models.build("llama"))
    sets = models.random_set(lens)
    by_id = pb.attribute(lens, sets, "w1 w2 w3", attribution_targets=[4, 5])
    by_word = pb.attribute(lens, sets, "w1 w2 w3", attribution_targets=["w4", "w5"])
    assert by_id.meta["str_tokens"][0] == "<bos>"
    assert by_id.nodes.feature[by_id.of_kind(k.LOGIT)].tolist() == [4, 5]
    assert_same_edges(by_id, by_word, 0.0)
    with pytest.raises(ValueError, match="is 2 tokens"):
        pb.attribute(lens, sets, "w1", attribution_targets=["w4 w5"])
    with pytest.raises(ValueError, match=r"must lie in 0\.\.49"):
        pb.attribute(lens, sets, "w1", attribution_targets=[50])


def test_tables_have_the_promised_columns(graph: Graph) -> None:
    nodes, edges = graph.to_pandas()
    assert list(nodes) == ["id", "kind", "layer", "pos", "feature", "token", "activation", "preactivation", "influence"]
    assert list(edges) == ["source", "target", "weight"]
    assert nodes["id"].is_unique
    assert nodes[nodes["kind"] == "logit"]["token"].tolist() == graph.meta["logit_labels"]
    assert nodes[nodes["kind"] == "embedding"]["token"].tolist() == graph.meta["str_tokens"]
    assert set(nodes["kind"]) == set(k.KINDS) - {"direction", "attention_feature", "attention_error"}
    incoming = edges.groupby("target")["weight"].sum()
    for row in nodes[nodes["kind"].isin(["feature", "logit"])].itertuples():
        assert incoming[row.id] == pytest.approx(row.preactivation, abs=1e-9)
    edge = edges.iloc[17]
    assert graph.edge(edge["source"], edge["target"]) == edge["weight"]


def test_file_round_trip_is_exact(graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "graph.safetensors"
    graph.save(path)
    back = Graph.load(path)
    assert torch.equal(_dense(back), _dense(graph))
    assert back.meta == graph.meta
    assert back.node_ids() == graph.node_ids()
    assert torch.equal(back.dropped, graph.dropped)


def test_sources_are_written_as_runs_where_that_is_less(graph: Graph, tmp_path: Path) -> None:
    whole, few = tmp_path / "whole.safetensors", tmp_path / "few.safetensors"
    graph.save(whole)
    strongest = dataclasses.replace(graph, weights=torch.where(torch.arange(graph.n_edges) % 2 == 0, graph.weights, 0))
    thin = strongest.prune(1.0, 0.5)
    thin.save(few)
    assert "run_first" in load_file(whole)
    assert "sources" in load_file(few)
    for file, saved in ((whole, graph), (few, thin)):
        back = Graph.load(file)
        assert back.sources.dtype == torch.int32
        assert torch.equal(back.sources, saved.sources)

    tensors, header = load_file(whole), {"format": "pullback-graph", "version": "1", "meta": "{}"}
    save_file(tensors | {"run_length": tensors["run_length"] + 1}, whole, header)
    with pytest.raises(ValueError, match="runs of sources are not those"):
        Graph.load(whole)
    del tensors["run_length"], tensors["run_first"]
    save_file(tensors, whole, header)
    with pytest.raises(ValueError, match="lacks run_first, run_length"):
        Graph.load(whole)
    save_file(tensors | {"sources": graph.sources}, whole, header)  # as version 1 was
    assert torch.equal(Graph.load(whole).sources, graph.sources)


def test_damaged_and_foreign_files_are_refused(graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "graph.safetensors"
    graph.save(path)
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ValueError, match="cut short"):
        Graph.load(path)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="holds no pullback graph"):
        Graph.load(path)
    broken = dataclasses.replace(graph, sources=graph.sources + graph.n_nodes)
    broken.save(path)
    with pytest.raises(ValueError, match="contradicts itself"):
        Graph.load(path)
    with pytest.raises(FileNotFoundError):
        Graph.load(tmp_path / "none")


def test_full_disk_and_interrupt_leave_the_old_file(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "graph.safetensors"
    graph.save(path)
    before = path.read_bytes()
    for failure in (OSError(28, "No space left on device"), KeyboardInterrupt()):

        def fail(_fd: int, failure: BaseException = failure) -> None:
            raise failure

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(type(failure)):
                graph.prune().save(path)
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == [path.name], "no temporary file stays behind"


def test_json_fits_the_schema_and_the_viewers_rules(graph: Graph, tmp_path: Path) -> None:
    payload = graph.to_neuronpedia(tmp_path / "g.json", slug="a-slug")
    assert json.loads((tmp_path / "g.json").read_text()) == payload
    jsonschema.validate(payload, GRAPH_SCHEMA)
    validate_payload(payload)
    assert payload["metadata"]["schema_version"] == 1
    assert payload["metadata"]["slug"] == "a-slug"
    assert payload["metadata"]["generation_settings"]["max_n_logits"] == 3
    assert graph.prune(0.7).to_neuronpedia()["metadata"]["pruning_settings"]["node_threshold"] == 0.7
    ids = [n["node_id"] for n in payload["nodes"]]
    assert len(set(ids)) == len(ids), "ids must not collide"
    assert all(link["source"] in set(ids) and link["target"] in set(ids) for link in payload["links"])
    for node in payload["nodes"]:
        if node["kind"] == "logit":
            assert "(p=" in node["clerp"]
            assert node["token_prob"] > 0
        if node["kind"] == "feature":
            layer, feature, pos = map(int, node["node_id"].split("_"))
            assert node["feature"] == cantor(layer, feature)
            assert (node["layer"], node["ctx_idx"]) == (str(layer), pos)
    assert cantor(2, 3) == 18


def test_cumulative_influence_agrees_with_pruning(graph: Graph) -> None:
    """A viewer that keeps influence <= t shows what prune(t) keeps, one crossing node aside."""
    share = graph.cumulative_influence()
    counted = inf.counts_in_scores(graph) & ~graph.of_kind(k.EMBEDDING, k.LOGIT)
    for t in (0.3, 0.8):
        shown = int(((share <= t) & counted).sum())
        kept = inf.smallest_set(graph.influence() * inf.counts_in_scores(graph), t)
        assert abs(shown - int((kept & counted).sum())) <= 1


def test_parts_remember_the_whole(graph: Graph, tmp_path: Path) -> None:
    """A pruned graph's page shows the scores and shares of the graph it comes from."""
    small = graph.prune().prune(0.9)
    whole = dict(zip(graph.node_ids(), graph.cumulative_influence().tolist(), strict=True))
    assert small.cumulative_influence().tolist() == [whole[i] for i in small.node_ids()]
    payload = small.to_neuronpedia(labels={small.node_ids()[-1]: "never for logits"})
    assert payload["metadata"]["scores"]["replacement"] == pytest.approx(graph.scores().replacement)
    small.save(tmp_path / "small")
    assert torch.equal(Graph.load(tmp_path / "small").cumulative_influence(), small.cumulative_influence())
    feature = next(n["node_id"] for n in payload["nodes"] if n["kind"] == "feature")
    named = small.to_neuronpedia(labels={feature: "a name"})
    assert [n["clerp"] for n in named["nodes"] if n["node_id"] == feature] == ["a name"]


def test_page_and_notebook(graph: Graph, tmp_path: Path) -> None:
    page = graph.prune().to_html(tmp_path / "g.html")
    assert (tmp_path / "g.html").read_text() == page
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert "iframe" in graph.prune()._repr_html_()
    assert "Graph(" in repr(graph)


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"engine": "magic"}, "engine must be one of"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_n_logits": 0}, "max_n_logits"),
        ({"desired_logit_prob": 0.0}, "desired_logit_prob"),
        ({"max_feature_nodes": -1}, "max_feature_nodes"),
        ({"attribution_targets": []}, "attribution_targets is empty"),
    ],
)
def test_bad_arguments_get_a_sentence(kwargs: dict, sentence: str) -> None:
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    with pytest.raises(ValueError, match=sentence):
        pb.attribute(lens, models.random_set(lens), tokens_of(3), **kwargs)


def test_a_plain_dict_of_transcoders_is_told_what_to_do() -> None:
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    with pytest.raises(ValueError, match="sets must be a TranscoderSet, got dict"):
        pb.attribute(lens, dict(models.random_set(lens)), tokens_of(3))


def test_sets_stay_as_they_were() -> None:
    """Attribution in float64 must not convert the user's float32 transcoders in place."""
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    sets = models.random_set(lens).to(dtype=torch.float32)
    pb.attribute(lens, sets, tokens_of(4))
    assert sets[0].W_enc.dtype == torch.float32


def test_a_graph_without_edges_has_no_influence() -> None:
    hand = by_hand()
    bare = hand.subgraph(torch.ones(hand.n_nodes, dtype=torch.bool), torch.zeros(hand.n_edges, dtype=torch.bool))
    assert bare.n_edges == 0
    assert not bare.influence().any()
    assert bare.scores() == (0.0, 1.0)
    effects = bare.total_effects()
    assert not effects.direct.any()
    assert effects.total.count_nonzero() == len(effects.targets), "but for each target's own value"
