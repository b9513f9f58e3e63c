"""Graphs of whatever is asked: logits at any position, differences, features, directions, several in one graph."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest
import torch
from torch import Tensor

import pullback as pb
from pullback.attribution import DirectionTarget, FeatureTarget, Graph, LogitDifference, LogitTarget
from pullback.attribution import nodes as k
from pullback.attribution.local import local_model
from pullback.lens import as_lens
from pullback.viz.schema import GRAPH_SCHEMA, validate_payload
from tests import models
from tests.attribution.test_identities import _dense, assert_same_edges, tokens_of

PLAIN = "LN-gqa-standard-plain"
WIRINGS = [PLAIN, "RMS-mha-rotary-gated", "neox-parallel", "gpt2-folded"]
SITES = ["ln_final", "blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre", "blocks.2.hook_resid_post"]
SITES += ["blocks.1.mlp.hook_in", "blocks.2.ln2.hook_normalized", "blocks.1.hook_resid_mid"]


def vector(lens: Any, seed: int = 5) -> Tensor:
    return torch.randn(lens.d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def an_active_feature(lens: Any, sets: Any, tokens: Tensor, layer: int, pos: int) -> FeatureTarget:
    acts = local_model(lens, sets, tokens).acts[layer]
    return FeatureTarget(layer, pos, int(acts.indices[int(acts.indptr[pos]) + 1]))


def an_idle_feature(lens: Any, sets: Any, tokens: Tensor, layer: int, pos: int) -> FeatureTarget:
    acts = local_model(lens, sets, tokens).acts[layer]
    active = acts.indices[int(acts.indptr[pos]) : int(acts.indptr[pos + 1])].tolist()
    return FeatureTarget(layer, pos, next(f for f in range(acts.n_features) if f not in active))


def of_every_kind(lens: Any, sets: Any, tokens: Tensor) -> list[Any]:
    sites = [s for s in SITES if not (lens.parallel and s.endswith("resid_mid"))]
    return [
        4,
        LogitTarget(4, position=2),
        LogitDifference((7, 9)),
        LogitDifference({1: 0.5, 2: 0.25, 3: -2.0}, position=-3, weight=0.5, label="three"),
        an_active_feature(lens, sets, tokens, 1, 3),
        an_active_feature(lens, sets, tokens, 2, 4),
        an_idle_feature(lens, sets, tokens, 1, -3 % len(tokens)),
        *(DirectionTarget(vector(lens, n), site, position=n % len(tokens)) for n, site in enumerate(sites)),
    ]


@pytest.mark.parametrize("kind", ["per-layer", "cross-layer"])
@pytest.mark.parametrize("name", WIRINGS)
def test_every_target_sums_and_both_engines_agree(name: str, kind: str) -> None:
    lens = as_lens(models.build(name))
    sets = models.random_set(lens, skip=True) if kind == "per-layer" else models.random_clt(lens)
    tokens = tokens_of(6)
    asked = of_every_kind(lens, sets, tokens)
    linear = pb.attribute(lens, sets, tokens, attribution_targets=asked, batch_size=4)
    assert linear.check() <= 1e-9
    assert int(linear.explained.sum()) == len(asked)
    assert_same_edges(linear, pb.attribute(lens, sets, tokens, attribution_targets=asked, engine="autograd"), 1e-9)


@pytest.mark.parametrize("name", WIRINGS)
def test_values_are_what_the_model_has(name: str) -> None:
    lens = as_lens(models.build(name))
    sets, tokens = models.random_set(lens), tokens_of(6)
    asked = of_every_kind(lens, sets, tokens)
    graph = pb.attribute(lens, sets, tokens, attribution_targets=asked)
    value = dict(zip(graph.node_ids(), graph.nodes.preactivation.tolist(), strict=True))
    logits = lens.logits(tokens[None])[0]
    assert value[f"{lens.n_layers + 1}_4_2"] == pytest.approx(float(logits[2, 4] - logits[2].mean()), abs=1e-9)
    assert value["D_0_5"] == pytest.approx(float(logits[5, 7] - logits[5, 9]), abs=1e-9)
    demeaned = logits[3] - logits[3].mean()
    assert value["D_1_3"] == pytest.approx(float(demeaned[1:4] @ demeaned.new_tensor([0.5, 0.25, -2])), abs=1e-9)
    directions = [t for t in asked if isinstance(t, DirectionTarget)]
    sites = [t.site for t in directions if t.site != "ln_final"]
    seen = lens.record(tokens[None], sites)[1]
    for n, target in enumerate(directions, start=2):
        if target.site != "ln_final":
            found = float(seen[target.site][0, target.position] @ target.vector)
            assert value[f"D_{n}_{target.position}"] == pytest.approx(found, abs=1e-9)
    for target in (t for t in asked if isinstance(t, FeatureTarget)):
        x = lens.mlp_io(tokens[None])[target.layer][0][0, target.position]
        tc = sets[target.layer]
        found = float(x @ tc.W_enc[target.feature] + tc.b_enc[target.feature])
        assert value[f"{target.layer}_{target.feature}_{target.position}"] == pytest.approx(found, abs=1e-9)


def row(graph: Graph, target: str) -> dict[str, float]:
    ids = graph.node_ids()
    t = ids.index(target)
    span = slice(int(graph.indptr[t]), int(graph.indptr[t + 1]))
    pairs = zip(graph.sources[span].tolist(), graph.weights[span].tolist(), strict=True)
    return {"own" if ids[s].startswith("own_") else ids[s]: w for s, w in pairs}


def test_a_difference_is_the_difference_of_rows() -> None:
    lens = as_lens(models.build(PLAIN))
    sets, tokens = models.random_set(lens), tokens_of(6)
    graph = pb.attribute(lens, sets, tokens, attribution_targets=[7, 9, LogitDifference((7, 9))])
    plus, minus, both = row(graph, "4_7_5"), row(graph, "4_9_5"), row(graph, "D_0_5")
    assert both == pytest.approx({s: plus[s] - minus[s] for s in plus}, abs=1e-9)
    by_vector = DirectionTarget(lens.W_U[:, 7] - lens.W_U[:, 9])
    same = pb.attribute(lens, sets, tokens, attribution_targets=by_vector)
    found = row(same, "D_0_5")
    constant = float(lens.b_U[7] - lens.b_U[9])
    assert found.pop("own") == pytest.approx(both.pop("own") - constant, abs=1e-9)
    assert found == pytest.approx(both, abs=1e-9)


class CustomTarget(NamedTuple):
    """As circuit-tracer has it."""

    token_str: str
    prob: float
    vec: Tensor


@pytest.mark.parametrize("several", [False, True])
def test_custom_targets_of_circuit_tracer_are_directions(several: bool) -> None:
    lens = as_lens(models.build(PLAIN))
    sets, tokens = models.random_set(lens), tokens_of(6)
    theirs = CustomTarget("concept", 0.5, vector(lens))
    graph = pb.attribute(lens, sets, tokens, attribution_targets=[theirs] if several else theirs)
    ours = pb.attribute(lens, sets, tokens, attribution_targets=DirectionTarget(vector(lens)))
    assert_same_edges(graph, ours, 0.0)
    assert list(graph.labels().values()) == ["concept"]
    assert float(graph.target_weights.sum()) == 0.5


@pytest.mark.parametrize("name", [PLAIN, "neox-parallel"])
def test_a_feature_has_the_row_that_it_has_in_the_whole_graph(name: str) -> None:
    """And its graph holds only what it can depend on."""
    lens = as_lens(models.build(name))
    sets, tokens = models.random_set(lens), tokens_of(6)
    target = an_active_feature(lens, sets, tokens, 2, 4)
    node = f"{target.layer}_{target.feature}_{target.position}"
    whole = pb.attribute(lens, sets, tokens)
    graph = pb.attribute(lens, sets, tokens, attribution_targets=target)
    assert row(graph, node) == pytest.approx({s: w for s, w in row(whole, node).items() if w}, abs=1e-12)
    assert bool(graph.nodes.kind[graph.explained] == k.FEATURE)
    features = graph.of_kind(k.FEATURE) & ~graph.explained
    assert int(graph.nodes.layer[features].max()) == 1
    assert int(graph.nodes.pos[features].max()) == 4
    assert int(features.sum()) == int(
        (whole.of_kind(k.FEATURE) & (whole.nodes.layer < 2) & (whole.nodes.pos < 5)).sum()
    )
    assert graph.target_weights.sum() == 1
    assert 0 < graph.scores().replacement < 1
    few = pb.attribute(lens, sets, tokens, attribution_targets=target, max_feature_nodes=5, batch_size=2)
    assert int(few.of_kind(k.FEATURE).sum()) == 5
    assert few.check() <= 1e-9
    assert node in few.node_ids()


def test_an_idle_feature_is_explained_and_feeds_nothing() -> None:
    lens = as_lens(models.build(PLAIN))
    sets, tokens = models.random_set(lens), tokens_of(6)
    graph = pb.attribute(lens, sets, tokens, attribution_targets=an_idle_feature(lens, sets, tokens, 1, 3))
    place = int(graph.explained.nonzero())
    assert float(graph.nodes.activation[place]) == 0
    assert not bool((graph.sources == place).any())
    assert graph.check() <= 1e-9


def test_influence_goes_by_the_weights_of_targets() -> None:
    lens = as_lens(models.build(PLAIN))
    sets, tokens = models.random_set(lens), tokens_of(6)
    feature = an_active_feature(lens, sets, tokens, 2, 5)

    def influence(*asked: Any) -> dict[str, float]:
        graph = pb.attribute(lens, sets, tokens, attribution_targets=asked)
        return dict(zip(graph.node_ids(), graph.influence().tolist(), strict=True))

    logit = LogitTarget(4, weight=0.25)
    alone = influence(logit), influence(FeatureTarget(2, 5, feature.feature, weight=3.0))
    both = influence(logit, FeatureTarget(2, 5, feature.feature, weight=3.0))
    shared = [name for name in alone[1] if name in both]
    assert len(shared) > 50
    for name in shared:
        assert both[name] == pytest.approx(alone[0].get(name, 0.0) + alone[1][name], abs=1e-9)
    probability = float(torch.softmax(lens.logits(tokens[None])[0, -1], -1)[4])
    by_default = influence(4)
    assert all(by_default[n] == pytest.approx(w / 0.25 * probability, abs=1e-9) for n, w in alone[0].items())


def test_tables_files_pages_and_parts_know_every_kind(tmp_path: Path) -> None:
    lens = as_lens(models.build(PLAIN))
    sets, tokens = models.random_set(lens), tokens_of(6)
    asked = of_every_kind(lens, sets, tokens)
    graph = pb.attribute(lens, sets, tokens, attribution_targets=asked, attention_saes=models.random_saes(lens))
    assert set(graph.to_pandas()[0]["kind"]) == set(k.KINDS)
    small = graph.prune(0.5, 0.9)
    assert small.check() <= 1e-9
    assert int(small.explained.sum()) == len(asked)
    small.save(tmp_path / "g.safetensors")
    back = Graph.load(tmp_path / "g.safetensors")
    assert torch.equal(_dense(back), _dense(small))
    assert torch.equal(back.target_weights, small.target_weights)
    assert back.labels() == small.labels()
    payload = back.to_neuronpedia()
    jsonschema.validate(payload, GRAPH_SCHEMA)
    validate_payload(payload)
    nodes = {n["node_id"]: n for n in payload["nodes"]}
    assert nodes["D_1_3"]["clerp"] == 'Output "three" (p=0.500)'
    assert nodes["D_1_3"]["is_target_logit"]
    assert nodes["D_0_5"]["clerp"].startswith('Output "<7> - <9>"')
    pinned = payload["qParams"]["pinnedIds"]
    assert {f"{t.layer}_{t.feature}_{t.position}" for t in asked if isinstance(t, FeatureTarget)} == set(pinned)
    assert "three" in back.to_html()
    keep = torch.ones(back.n_nodes, dtype=torch.bool)
    keep[back.node_ids().index("D_0_5")] = False
    assert back.subgraph(keep).meta["direction_labels"] == back.meta["direction_labels"][1:]


def test_a_position_of_its_own_for_the_whole_graph() -> None:
    lens = as_lens(models.build("llama"))
    sets = models.random_set(lens)
    graph = pb.attribute(lens, sets, "w1 w2 w3 w4", position=-2)
    shorter = pb.attribute(lens, sets, "w1 w2 w3")
    assert dict(graph.answers()) == pytest.approx(dict(shorter.answers()))
    assert int(graph.nodes.pos[graph.of_kind(k.FEATURE)].max()) == 3
    assert graph.check() <= 1e-9
    for node in shorter.node_ids():
        if node.startswith("4_"):
            assert row(graph, node) == pytest.approx(row(shorter, node), abs=1e-9)


def test_the_examples_of_the_documentation_run() -> None:
    text = (Path(__file__).parents[2] / "docs" / "ATTRIBUTION.md").read_text()
    of_targets, of_attention = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    names: dict[str, Any] = {
        "pb": pb,
        "model": pb.zoo.load("tiny-mix"),
        "sets": pb.zoo.transcoders("tiny-mix"),
        "prompt": "the capital of the state containing dallas is",
        "probe": torch.ones(128),
    }
    exec(compile(of_targets, "ATTRIBUTION.md", "exec"), names)
    assert sorted(names["graph"].labels().values()) == ["austin", "austin - sacramento", "is a city", "texas"]
    exec(compile(of_attention, "ATTRIBUTION.md", "exec"), names)
    assert bool(names["graph"].of_kind(k.ATTENTION_FEATURE).any())


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        (FeatureTarget(7, 0, 0), r"transcoders at layers \[0, 1, 2\] only"),
        (FeatureTarget(0, 0, 40), r"layer 0 has features 0\.\.39"),
        (FeatureTarget(0, 0, 1.5), r"the id of a feature must be a whole number, got 1\.5"),  # pyright: ignore
        (FeatureTarget(0, 1.5, 0), r"a position must be a whole number, got 1\.5"),  # pyright: ignore
        (FeatureTarget(0, 0, 0, attention=True), "there are no autoencoders of attention here; give attention_saes"),
        (FeatureTarget(0, 6, 0), "position 6 lies outside the prompt, which has 6 tokens"),
        (LogitTarget(3, position=-7), "position -7 lies outside"),
        (LogitTarget(3, weight=0.0), "weight of a target must be positive"),
        (LogitDifference((3, 3)), "needs different tokens"),
        (LogitDifference((3, 4, 5)), "takes two tokens"),  # pyright: ignore[reportArgumentType]
        (LogitDifference({3: 0.0}), "not all 0"),
        (LogitDifference({3: 1.0, 99: -1.0}), r"must lie in 0\.\.49"),
        (DirectionTarget(torch.ones(3)), r"must be \[16\], finite and not 0, got \[3\]"),
        (DirectionTarget(torch.zeros(16)), "finite and not 0"),
        (DirectionTarget(torch.ones(16), "blocks.3.mlp.hook_in"), r"no direction can be read at 'blocks\.3\.mlp"),
        (DirectionTarget(torch.ones(16), "blocks.1.attn.hook_z"), "hook_resid_pre, hook_resid_post, mlp.hook_in"),
        ([FeatureTarget(0, 1, 2), FeatureTarget(0, 1, 2)], "names a feature twice"),
        ([LogitTarget(3), LogitTarget(3, position=5)], "names a token twice"),
    ],
)
def test_what_cannot_be_explained_gets_a_sentence(target: Any, sentence: str) -> None:
    lens = as_lens(models.build(PLAIN))
    with pytest.raises(ValueError, match=sentence):
        pb.attribute(lens, models.random_set(lens), tokens_of(6), attribution_targets=target)


def test_numbers_of_any_kind_name_a_feature() -> None:
    lens = as_lens(models.build(PLAIN))
    sets = models.random_set(lens)
    one = torch.tensor
    graphs = [
        pb.attribute(lens, sets, tokens_of(6), attribution_targets=FeatureTarget(*what), position=pos)
        for what, pos in (((1, 3, 2), -1), ((one(1), one(3), one(2)), one(-1)))  # pyright: ignore
    ]
    assert graphs[0].node_ids() == graphs[1].node_ids()
    assert torch.equal(graphs[0].weights, graphs[1].weights)
    with pytest.raises(ValueError, match=r"a position must be a whole number, got 1\.5"):
        pb.attribute(lens, sets, tokens_of(6), position=1.5)  # pyright: ignore


def test_nodes_are_asked_for_by_numbers_of_any_kind() -> None:
    lens = as_lens(models.build(PLAIN))
    graph = pb.attribute(lens, models.random_set(lens), tokens_of(6))
    name = graph.node_ids()[3]
    for one in (3, name, torch.tensor(3), [3], torch.tensor([3]), (name,), iter([3])):
        assert graph.places(one).tolist() == [3]  # pyright: ignore
    with pytest.raises(TypeError):
        graph.places([3.7])  # pyright: ignore
    explained = graph.explained
    for mask in (explained, explained.numpy(), explained.tolist()):
        with pytest.raises(TypeError, match=r"not a mask of bool; of a mask, give mask.nonzero\(\)"):
            graph.total_effects(mask)
    assert torch.equal(graph.total_effects(explained.nonzero()[:, 0]).total, graph.total_effects().total)


def test_a_parallel_block_has_no_middle() -> None:
    lens = as_lens(models.build("neox-parallel"))
    target = DirectionTarget(torch.ones(16), "blocks.1.hook_resid_mid")
    with pytest.raises(ValueError, match="parallel blocks and so no hook_resid_mid"):
        pb.attribute(lens, models.random_set(lens), tokens_of(6), attribution_targets=target)
