"""Graphs of many prompts: against loops over nodes and edges, and by hand."""

from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

import pullback as pb
from pullback.attribution import nodes as k
from pullback.attribution.collection import keys
from pullback.attribution.collection.keys import NodeKeys, node_keys
from pullback.attribution.collection.similarity import agglomerate, similarity
from pullback.attribution.collection.tally import Tally
from pullback.lens import as_lens
from tests import models
from tests.attribution.test_graph import by_hand
from tests.attribution.test_identities import tokens_of

N, T = 5, 4


@pytest.fixture(scope="module")
def graphs() -> list[pb.Graph]:
    """Prompts with a common beginning: some features recur, at one position or several."""
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    sets = models.random_set(lens, d_sae=20, k=3)
    prompts = [torch.cat([tokens_of(2), tokens_of(1 + i % 3, seed=i)]) for i in range(N)]
    return [pb.attribute(lens, sets, prompt, max_n_logits=2) for prompt in prompts]


@pytest.fixture(scope="module")
def folder(graphs: list[pb.Graph], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    for i, graph in enumerate(graphs):
        graph.save(folder / f"{i:06d}.safetensors")
    return folder


def features_of(graph: pb.Graph) -> dict[tuple[int, int], float]:
    found: dict[tuple[int, int], float] = defaultdict(float)
    n, influence = graph.nodes, graph.influence()
    for i in graph.of_kind(k.FEATURE).nonzero()[:, 0].tolist():
        found[int(n.layer[i]), int(n.feature[i])] += float(influence[i])
    return found


def edges_of(graph: pb.Graph) -> dict[tuple[int, ...], float]:
    found: dict[tuple[int, ...], float] = defaultdict(float)
    n, feature = graph.nodes, graph.of_kind(k.FEATURE)
    for t, s, w in zip(graph.rows().tolist(), graph.sources.tolist(), graph.weights.tolist(), strict=True):
        if feature[t] and feature[s]:
            found[int(n.layer[s]), int(n.feature[s]), int(n.layer[t]), int(n.feature[t])] += w
    return found


def test_features_that_recur(graphs: list[pb.Graph], folder: Path) -> None:
    expected = [features_of(graph) for graph in graphs]
    for collection in (pb.GraphCollection(folder), pb.GraphCollection(graphs)):
        table = collection.features()
        union = set().union(*expected)
        assert {(a, b) for a, b in zip(table["layer"], table["feature"], strict=True)} == union
        for row in table.itertuples():
            held = [one[row.layer, row.feature] for one in expected if (row.layer, row.feature) in one]
            assert row.prompts == len(held) == round(row.share * N)
            assert row.influence == pytest.approx(sum(held) / N)
        assert table["influence"].is_monotonic_decreasing
        common = collection.features(min_share=1)
        assert 0 < len(common) < len(union)
        assert set(zip(common["layer"], common["feature"], strict=True)) == set.intersection(*map(set, expected))


def test_edges_by_a_loop(graphs: list[pb.Graph]) -> None:
    table = pb.GraphCollection(graphs).edges()
    expected = [edges_of(graph) for graph in graphs]
    assert len(table) == len(set().union(*expected))
    assert bool((table["prompts"] > 1).any())
    for row in table.itertuples():
        edge = (row.source_layer, row.source_feature, row.target_layer, row.target_feature)
        weights = np.array([one[edge] for one in expected if edge in one])
        assert row.prompts == len(weights)
        assert row.same_sign == pytest.approx(max((weights > 0).sum(), (weights < 0).sum()) / N)
        assert row.mean == pytest.approx(weights.mean())
        assert row.std == pytest.approx(weights.std(), abs=1e-7)
    assert table["same_sign"].is_monotonic_decreasing


@pytest.mark.parametrize("align", ["fold", "end"])
def test_the_mean_of_graphs_is_a_graph_that_sums(graphs: list[pb.Graph], tmp_path: Path, align: str) -> None:
    mean = pb.GraphCollection(graphs).mean(align)
    assert mean.check() <= 1e-12
    mean.save(tmp_path / "mean.safetensors")
    assert pb.Graph.load(tmp_path / "mean.safetensors").node_ids() == mean.node_ids()
    assert mean.prune().to_html()
    nodes, _ = mean.to_pandas()
    assert nodes["id"].is_unique
    assert set(nodes["pos"]) == (set(range(len(mean.meta["tokens"]))) if align == "end" else {0})
    # Every logit's row, summed over positions and prompts.
    token = int(mean.nodes.feature[mean.of_kind(k.LOGIT)][0])
    row = (mean.of_kind(k.LOGIT) & (mean.nodes.feature == token)).nonzero()[0, 0]
    total = sum(
        float(graph.weights[(graph.of_kind(k.LOGIT) & (graph.nodes.feature == token))[graph.rows()]].sum())
        for graph in graphs
    )
    assert float(mean.weights[mean.rows() == row].sum()) == pytest.approx(total / N)
    common = pb.GraphCollection(graphs).mean(align, min_share=1)
    assert common.check() <= 1e-12
    assert int(common.of_kind(k.FEATURE).sum()) < int(mean.of_kind(k.FEATURE).sum())


def test_the_mean_of_one_prompt_is_its_graph(graphs: list[pb.Graph]) -> None:
    mean = pb.GraphCollection(graphs[:1]).mean("end")
    tables = [[table.set_index(list(table)[:1]).sort_index() for table in g.to_pandas()] for g in (mean, graphs[0])]
    for ours, theirs in zip(*tables, strict=True):
        assert list(ours.index) == list(theirs.index)
    assert tables[0][0].drop(columns="influence").equals(tables[1][0].drop(columns="influence"))
    assert np.allclose(tables[0][0]["influence"], tables[1][0]["influence"])
    edges = [{edge[:2]: edge[2] for edge in g.to_pandas()[1].itertuples(index=False)} for g in (mean, graphs[0])]
    assert edges[0] == edges[1]


def test_directions_are_the_same_where_their_labels_are() -> None:
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    sets = models.random_set(lens, d_sae=20, k=3)
    prompt = tokens_of(4)

    def asked(*pairs: tuple[int, int], label: str = "") -> pb.Graph:
        differences = [pb.LogitDifference(pair, label=label) for pair in pairs]
        return pb.attribute(lens, sets, prompt, attribution_targets=differences)

    there, back = asked((1, 2)), asked((2, 1))
    value = float(there.nodes.preactivation[there.explained])
    mean = pb.GraphCollection([there, back]).mean("end")
    assert sorted(mean.labels().values()) == ["<1> - <2>", "<2> - <1>"]
    by_label = {label: float(mean.nodes.preactivation[place]) for place, label in mean.labels().items()}
    assert by_label == pytest.approx({"<1> - <2>": value / 2, "<2> - <1>": -value / 2})
    assert mean.check() < 1e-5
    assert len(set(mean.node_ids())) == mean.n_nodes

    again = pb.GraphCollection([there, there]).mean("end")
    assert list(again.labels().values()) == ["<1> - <2>"]
    named = pb.GraphCollection([asked((1, 2), label="right"), asked((2, 1), label="right")]).mean("end")
    assert list(named.labels().values()) == ["right"]
    assert float(named.nodes.preactivation[named.explained]) == pytest.approx(0, abs=1e-5)
    twice = pb.GraphCollection([asked((1, 2), (2, 1), label="x")]).mean("end")
    assert sorted(twice.labels().values()) == ["x", "x (2)"]


def test_different_labels_under_one_key_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "crc32", lambda _: 7)
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    sets = models.random_set(lens, d_sae=20, k=3)
    targets = [pb.LogitDifference(pair) for pair in ((1, 2), (2, 1))]
    graphs = [pb.attribute(lens, sets, tokens_of(4), attribution_targets=target) for target in targets]
    with pytest.raises(ValueError, match="are taken for the same direction: give one of them another label"):
        pb.GraphCollection(graphs).mean("end")


def test_numbers_of_any_kind_choose_graphs(graphs: list[pb.Graph]) -> None:
    collection = pb.GraphCollection(graphs)
    for one in (1, np.int64(1), torch.tensor(1)):
        assert collection[one] is graphs[1]
    assert collection[-1] is graphs[-1]
    assert len(collection[[0, 2]]) == 2
    for wrong in ([], np.zeros(len(graphs), dtype=bool)):
        with pytest.raises(ValueError, match="no graphs"):
            collection[wrong]


def test_a_mean_is_of_no_prompt(graphs: list[pb.Graph]) -> None:
    assert graphs[0].prompt_tokens() == graphs[0].meta["tokens"]
    with pytest.raises(ValueError, match="mean of 5 prompts is of no prompt that could be run"):
        pb.GraphCollection(graphs).mean("end").prompt_tokens()


def test_positions_are_counted_from_the_end() -> None:
    one, other = by_hand(), by_hand()
    other.meta["str_tokens"], other.meta["tokens"] = ["z", "x", "y"], [9, 7, 8]
    other.nodes.pos.add_(1)
    mean = pb.GraphCollection([one, other]).mean("end")
    assert mean.meta["str_tokens"] == ["z", "x", "y"]
    assert torch.equal(mean.weights, one.weights)
    assert torch.equal(mean.nodes.pos, other.nodes.pos)
    other.meta["n_layers"] = 3
    with pytest.raises(ValueError, match="graph of 3 layers among"):
        pb.GraphCollection([one, other]).mean()
    with pytest.raises(ValueError, match="align must be"):
        pb.GraphCollection([one]).mean("start")  # type: ignore[arg-type]
    for ask in ("features", "edges", "mean"):
        with pytest.raises(ValueError, match=r"min_share must lie in \[0, 1\], got 80"):
            getattr(pb.GraphCollection([one]), ask)(min_share=80)


def test_difference_of_prompts_and_of_collections(graphs: list[pb.Graph]) -> None:
    table = pb.GraphCollection(graphs[:2]).difference(graphs[2])
    here, there = [features_of(graph) for graph in graphs[:2]], features_of(graphs[2])
    assert len(table) == len({*here[0], *here[1], *there})
    for row in table.itertuples():
        feature = row.layer, row.feature
        assert row.influence == pytest.approx((here[0].get(feature, 0) + here[1].get(feature, 0)) / 2)
        assert row.other == pytest.approx(there.get(feature, 0))
    assert table["difference"].abs().is_monotonic_decreasing
    same = pb.GraphCollection(graphs).difference(pb.GraphCollection(graphs))
    assert float(same["difference"].abs().max()) == 0.0


def test_similarity_is_what_its_formula_says(graphs: list[pb.Graph]) -> None:
    vectors = [features_of(graph) for graph in graphs]
    alike = {measure: pb.GraphCollection(graphs).similarity(measure) for measure in ("jaccard", "cosine")}
    for i, j in itertools.product(range(N), repeat=2):
        both = sorted({*vectors[i], *vectors[j]})
        a, b = (np.array([v.get(f, 0.0) for f in both]) for v in (vectors[i], vectors[j]))
        assert alike["jaccard"][i, j] == pytest.approx(np.minimum(a, b).sum() / np.maximum(a, b).sum())
        assert alike["cosine"][i, j] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    nothing = (np.zeros(0, np.int64), np.zeros(0))
    assert np.array_equal(similarity([nothing, (np.array([3]), np.array([1.0]))], "jaccard"), np.eye(2))
    with pytest.raises(ValueError, match="must be one of jaccard, cosine"):
        pb.GraphCollection(graphs).similarity("dot")


@pytest.mark.parametrize("linkage", ["average", "complete", "single"])
def test_agglomeration_by_its_definition(linkage: str) -> None:
    """The distance of two clusters is the mean, largest or smallest of their members'."""
    points = np.random.default_rng(0).normal(size=(12, 3))
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    of = {"average": np.mean, "complete": np.max, "single": np.min}[linkage]
    clusters = [[i] for i in range(12)]
    for n_clusters in range(12, 0, -1):
        labels = agglomerate(distance, n_clusters, linkage)
        assert {tuple(np.flatnonzero(labels == c)) for c in range(n_clusters)} == {tuple(sorted(c)) for c in clusters}
        pairs = list(itertools.combinations(range(len(clusters)), 2))
        if pairs:
            a, b = min(pairs, key=lambda ab: of(distance[np.ix_(clusters[ab[0]], clusters[ab[1]])]))
            clusters[a] += clusters.pop(b)
    with pytest.raises(ValueError, match=r"must lie in 1\.\.12"):
        agglomerate(distance, 13, linkage)


def test_clusters_find_templates() -> None:
    """Prompts of two tasks of tiny-mix fall apart into the tasks."""
    model, sets = pb.zoo.load("tiny-mix"), pb.zoo.transcoders("tiny-mix")
    prompts = ["the capital of texas is", "the capital of ohio is", "dallas is in", "oakland is in", "miami is in"]
    collection = pb.GraphCollection([pb.attribute(model, sets, prompt) for prompt in prompts])
    labels = collection.cluster(2)
    assert labels.tolist() == [0, 0, 1, 1, 1]
    assert collection[labels == 1].prompts == prompts[2:]
    assert [graph.meta["prompt"] for graph in collection[[3, 0]]] == [prompts[3], prompts[0]]
    assert len(collection[1:]) == 4
    assert collection[-1].meta["prompt"] == prompts[-1]


def test_tallies_settle_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pullback.attribution.collection.tally.PENDING", 10)
    random, tally, total = np.random.default_rng(0), Tally(2, 1), defaultdict(float)
    for _ in range(20):
        keys, values = random.integers(0, 4, (7, 2)), random.normal(size=(7, 1))
        tally.add(keys, values)
        for key, value in zip(keys, values[:, 0], strict=True):
            total[tuple(key)] += value
    tally.settle()
    assert [tuple(key) for key in tally.keys] == sorted(total)
    assert np.allclose(tally.sums[:, 0], [total[key] for key in sorted(total)])
    assert len(Tally(1, 2).settle().keys) == 0


def test_keys_keep_everything(graphs: list[pb.Graph]) -> None:
    for graph in graphs:
        keys = node_keys(graph, "end")
        assert len(np.unique(keys)) == len(keys)
        of = NodeKeys.unpacked(keys)
        assert of.layer.tolist() == graph.nodes.layer.tolist()
        assert (of.place + len(graph.meta["tokens"]) - 1).tolist() == graph.nodes.pos.tolist()
    with pytest.raises(ValueError, match="id of this graph is too large"):
        NodeKeys(*(np.array([x]) for x in (2, 2, 0, 0, 2**33))).packed()


def test_what_is_no_collection_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        pb.GraphCollection(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds no graphs"):
        pb.GraphCollection(tmp_path)
    with pytest.raises(ValueError, match="no graphs were given"):
        pb.GraphCollection([])
