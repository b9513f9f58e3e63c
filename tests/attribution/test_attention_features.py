"""Features and errors of attention outputs as nodes: the identities of graphs hold with them, over every wiring."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pullback as pb
from pullback.attribution import FeatureTarget, Graph
from pullback.attribution import nodes as k
from pullback.attribution.local import local_model
from pullback.attribution.memory import expected_edges
from pullback.lens import as_lens
from pullback.lens import record as rec
from tests import models
from tests.attribution.test_identities import _dense, assert_same_edges, tokens_of

PLAIN = "LN-gqa-standard-plain"


@pytest.mark.parametrize("name", models.ALL)
@pytest.mark.parametrize("skip", [False, True])
def test_linear_engine_equals_autograd_and_sums_to_its_targets(name: str, skip: bool) -> None:
    lens = as_lens(models.build(name))
    sets, saes = models.random_set(lens, skip=skip), models.random_saes(lens)
    asked = {"max_n_logits": 3, "attention_saes": saes}
    linear = pb.attribute(lens, sets, tokens_of(6), batch_size=16, **asked)
    oracle = pb.attribute(lens, sets, tokens_of(6), engine="autograd", **asked)
    assert linear.check() <= 1e-9
    assert_same_edges(linear, oracle, 1e-9)
    for kind in (k.ATTENTION_FEATURE, k.ATTENTION_ERROR):
        assert float(linear.nodes.activation[linear.of_kind(kind)].min()) > 0
    into = _dense(linear)[linear.of_kind(k.ATTENTION_FEATURE)]
    assert bool(into[:, linear.of_kind(k.FEATURE)].any())
    assert bool(into[:, linear.of_kind(k.ATTENTION_FEATURE)].any())


@given(
    seed=st.integers(0, 100),
    length=st.integers(1, models.N_CTX),
    layers=st.sets(st.integers(0, 2), min_size=1),
    at_attention=st.sets(st.integers(0, 2), min_size=1),
    activation=st.sampled_from(["topk", "relu", "jumprelu"]),
    batch_size=st.integers(1, 50),
    zero=st.sampled_from([None, slice(0, 1), slice(0, 2)]),
    clt=st.booleans(),
    oracle=st.sampled_from([False, False, True]),
    name=st.sampled_from([PLAIN, "RMS-gqa-rotary-gated", "neox-parallel"]),
)
def test_identities_hold_whatever_the_dictionaries(
    seed: int,
    length: int,
    layers: set[int],
    at_attention: set[int],
    activation: str,
    batch_size: int,
    zero: slice | None,
    clt: bool,
    oracle: bool,
    name: str,
) -> None:
    lens = as_lens(models.build(name))
    sets = (models.random_clt if clt else models.random_set)(lens, seed, layers=sorted(layers), activation=activation)
    saes = models.random_saes(lens, seed + 1, layers=sorted(at_attention), activation=activation)
    kwargs = {"max_n_logits": 2, "zero_positions": zero, "attention_saes": saes}
    linear = pb.attribute(lens, sets, tokens_of(length, seed), batch_size=batch_size, **kwargs)
    assert linear.check() <= 1e-9
    if oracle:
        assert_same_edges(linear, pb.attribute(lens, sets, tokens_of(length, seed), engine="autograd", **kwargs), 1e-9)


@pytest.mark.parametrize("name", [PLAIN, "RMS-gqa-rotary-gated", "neox-parallel"])
def test_a_feature_more_moves_what_it_feeds_by_its_column(name: str) -> None:
    """O5 by hand: doubling a feature of attention, all else frozen, adds its edge to what reads the stream above it."""
    lens = as_lens(models.build(name))
    sets, saes, tokens = models.random_set(lens), models.random_saes(lens), tokens_of(6)
    graph = pb.attribute(lens, sets, tokens, max_n_logits=3, attention_saes=saes)
    local = local_model(lens, sets, tokens, attention_saes=saes)
    adjacency, n = _dense(graph), graph.nodes
    sources = graph.of_kind(k.ATTENTION_FEATURE).nonzero()[:, 0]
    for s in sources[:: len(sources) // 8].tolist():
        layer, pos = int(n.layer[s]), int(n.pos[s])
        written = float(n.activation[s]) * saes[layer].W_dec[n.feature[s]]
        # Every feature and error keeps writing what it wrote, so only the stream at this position changes.
        for t in graph.of_kind(k.FEATURE, k.LOGIT).nonzero()[:, 0].tolist():
            i = int(n.layer[t])
            above = i > layer or (i == layer and not lens.parallel)
            expected = 0.0
            if int(n.pos[t]) == pos and above:
                if int(n.kind[t]) == k.LOGIT:
                    direction = local.trace.W_U[:, n.feature[t]] - local.trace.W_U.mean(1)
                    v = local.trace.ln_final.pullback(direction[None], local.trace.final_scale[[pos]])[0]
                else:
                    block, row = local.trace.layers[i], sets[i].W_enc[n.feature[t]][None]
                    v = block.read_pullback(sets.hook_in(i), row, torch.tensor([pos]))[0]
                expected = float(written @ v)
            assert float(adjacency[t, s]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", [PLAIN, "RMS-gqa-rotary-gated", "neox-parallel"])
def test_parts_put_together_give_the_models_logits(name: str) -> None:
    """O4: features, errors and bias put together are what attention wrote."""
    lens = as_lens(models.build(name))
    sets, saes, tokens = models.random_set(lens), models.random_saes(lens), tokens_of(6)
    found = local_model(lens, sets, tokens, attention_saes=saes).attention
    sites = {i: (f"blocks.{i}.hook_attn_out",) * 2 for i in saes.layers}

    def put_together(i: int):  # noqa: ANN202
        whole = saes.decode(found.acts, i) + found.errors[i] + found.bias[i]
        return lambda _x, _y: whole[None]

    replaced, _ = lens.record(tokens[None], [], rec.patch_edits({i: put_together(i) for i in sites}, sites))
    assert torch.allclose(replaced, lens.logits(tokens[None]), atol=1e-9)


def test_leaves_carry_the_whole_of_every_logit() -> None:
    """O6, O7 with attention features in the way: all leaves sum to the target along all paths."""
    lens = as_lens(models.build(PLAIN))
    graph = pb.attribute(lens, models.random_set(lens), tokens_of(6), attention_saes=models.random_saes(lens))
    leaves = graph.of_kind(k.EMBEDDING, k.POSITION, *k.ERRORS, k.BIAS, k.OWN)
    effects = graph.total_effects()
    wanted = graph.nodes.preactivation[effects.targets]
    assert torch.allclose(effects.total[:, leaves].sum(1), wanted, atol=1e-9)
    assert float(graph.influence(bias=True)[leaves].sum()) == pytest.approx(float(graph.target_weights.sum()), abs=1e-9)
    A = _dense(graph)
    inverse = torch.where(graph.nodes.preactivation.isnan(), 1, 1 / graph.nodes.preactivation)
    total = (
        wanted[:, None] * torch.linalg.inv(torch.eye(graph.n_nodes).double() - A * inverse[:, None])[effects.targets]
    )
    assert torch.allclose(effects.total, total, atol=1e-8)


def test_without_features_at_attention_nothing_changes() -> None:
    lens = as_lens(models.build(PLAIN))
    sets, saes = models.random_set(lens), models.random_saes(lens, layers=[1])
    with_saes = pb.attribute(lens, sets, tokens_of(6), attention_saes=saes)
    without = pb.attribute(lens, sets, tokens_of(6))
    ids = without.node_ids()
    low = [
        n
        for n, (kind, layer) in enumerate(zip(without.nodes.kind, without.nodes.layer, strict=True))
        if int(kind) == k.FEATURE and int(layer) == 0
    ]
    for t in low:
        for s in range(without.n_nodes):
            assert with_saes.edge(ids[s], ids[t]) == pytest.approx(without.edge(ids[s], ids[t]), abs=1e-12)


@pytest.mark.parametrize("limit", [5, 40])
def test_a_limit_ranks_both_kinds_together(limit: int) -> None:
    lens = as_lens(models.build(PLAIN))
    sets, saes = models.random_set(lens), models.random_saes(lens)
    full = pb.attribute(lens, sets, tokens_of(6), attention_saes=saes)
    small = pb.attribute(
        lens, sets, tokens_of(6), attention_saes=saes, max_feature_nodes=limit, batch_size=4, update_interval=1
    )
    assert int(small.of_kind(*k.FEATURES).sum()) == limit
    assert small.check() <= 1e-9
    kept = {name for name, own in zip(small.node_ids(), small.of_kind(*k.FEATURES).tolist(), strict=True) if own}
    features = full.of_kind(*k.FEATURES)
    best = [full.node_ids()[i] for i in full.influence().argsort(descending=True).tolist() if features[i]]
    assert set(best[: max(1, limit // 4)]) <= kept


def test_features_of_attention_can_be_explained() -> None:
    lens = as_lens(models.build(PLAIN))
    sets, saes, tokens = models.random_set(lens), models.random_saes(lens), tokens_of(6)
    found = local_model(lens, sets, tokens, attention_saes=saes).attention
    active, h = int(found.acts[2].row(5)[0][0]), found.acts[2].values[int(found.acts[2].indptr[5])]
    dead = next(f for f in range(40) if f not in found.acts[1].row(4)[0].tolist())
    asked = [FeatureTarget(2, 5, active, attention=True), FeatureTarget(1, 4, dead, attention=True)]
    graph = pb.attribute(lens, sets, tokens, attribution_targets=asked, attention_saes=saes)
    assert graph.check() <= 1e-9
    ids = [graph.node_ids()[i] for i in graph.places().tolist()]
    assert ids == [f"A2_{active}_5", f"A1_{dead}_4"]
    assert float(graph.nodes.preactivation[graph.places()[0]]) == pytest.approx(float(h), abs=1e-12)
    assert not bool(graph.of_kind(k.FEATURE)[graph.nodes.layer >= 2].any()), "an MLP does not feed its own attention"
    with pytest.raises(ValueError, match=r"autoencoders of attention at layers \[0, 1, 2\] only"):
        pb.attribute(
            lens, sets, tokens, attribution_targets=FeatureTarget(7, 0, 0, attention=True), attention_saes=saes
        )


def test_prompts_together_give_the_graphs_of_each(tmp_path: Path) -> None:
    lens = as_lens(models.build(PLAIN))
    sets, saes = models.random_set(lens), models.random_saes(lens)
    prompts = [tokens_of(n, seed).tolist() for seed, n in enumerate([6, 6, 6, 4, 4])]
    table = pb.attribute_many(lens, sets, prompts, tmp_path, attention_saes=saes, verbose=False)
    assert (table["status"] == "ok").all()
    for row, prompt in zip(table.itertuples(), prompts, strict=True):
        alone = pb.attribute(lens, sets, prompt, attention_saes=saes)
        assert_same_edges(Graph.load(tmp_path / row.file), alone, 1e-9)
    with pytest.raises(ValueError, match="other"):
        pb.attribute_many(lens, sets, prompts, tmp_path, verbose=False)


def test_files_and_pages_give_back_the_same_graph(tmp_path: Path) -> None:
    lens = as_lens(models.build(PLAIN))
    sets, saes = models.random_set(lens), models.random_saes(lens)
    graph = pb.attribute(lens, sets, tokens_of(6), attention_saes=saes).prune(0.7, 0.9)
    assert int(graph.of_kind(k.ATTENTION_FEATURE).sum())
    assert graph.check() <= 1e-9
    graph.save(tmp_path / "g.safetensors")
    for back in (
        Graph.load(tmp_path / "g.safetensors"),
        Graph.from_neuronpedia(graph.to_neuronpedia()),
        Graph.from_arrow(*graph.to_arrow()),
    ):
        assert back.node_ids() == graph.node_ids()
        assert torch.equal(back.nodes.kind, graph.nodes.kind)
        assert torch.allclose(_dense(back), _dense(graph))
        assert back.scores() == pytest.approx(graph.scores())
    assert "A1_" in graph.to_html()


def test_names_of_another_writer_are_read() -> None:
    """Neuronpedia's converter calls them {layer}_lor_{id}_{position}, and says no kind of its own."""
    lens = as_lens(models.build(PLAIN))
    graph = pb.attribute(lens, models.random_set(lens), tokens_of(4), attention_saes=models.random_saes(lens))
    payload = graph.to_neuronpedia()
    named = {}
    for node in payload["nodes"]:
        kind = node.pop("kind")
        if kind == "attention_feature":
            layer, feature, pos = node["node_id"].removeprefix("A").split("_")
            named[node["node_id"]] = node["node_id"] = f"{layer}_lor_{feature}_{pos}"
    own = {node["node_id"] for node in payload["nodes"] if node["node_id"].startswith("own_")}
    payload["nodes"] = [
        node for node in payload["nodes"] if node["node_id"] not in own and node["feature_type"] != "bias"
    ]
    here = {node["node_id"] for node in payload["nodes"]}
    links = [link | {end: named.get(link[end], link[end]) for end in ("source", "target")} for link in payload["links"]]
    payload["links"] = [link for link in links if link["source"] in here]
    back = Graph.from_neuronpedia(payload)
    features = [graph.node_ids()[i] for i in graph.of_kind(k.ATTENTION_FEATURE).nonzero()[:, 0].tolist()]
    assert [back.node_ids()[i] for i in back.of_kind(k.ATTENTION_FEATURE).nonzero()[:, 0].tolist()] == features
    assert back.edge(features[-1], back.node_ids()[-1]) == pytest.approx(graph.edge(features[-1], graph.node_ids()[-1]))


@pytest.mark.parametrize("hop", ["last", "first"])
@pytest.mark.parametrize(
    ("name", "skip", "layers"), [(PLAIN, True, [1]), ("neox-parallel", True, None), ("llama", False, [0, 2])]
)
def test_heads_carry_what_no_feature_of_attention_takes(
    name: str, skip: bool, layers: list[int] | None, hop: str
) -> None:
    lens = as_lens(models.build(name))
    sets, saes = models.random_set(lens, skip=skip), models.random_saes(lens, layers=layers)
    graph = pb.attribute(lens, sets, tokens_of(5), max_n_logits=2, attention_saes=saes)
    found = pb.head_loadings(lens, sets, graph, hop=hop, attention_saes=saes)
    edges = graph.weights[~graph.of_kind(k.OWN)[graph.sources.long()]]
    assert float((found.weights - edges).abs().max()) <= 1e-9 * float(edges.abs().max())
    into = torch.tensor([target.startswith("A") for _, target in found.edges])
    assert not bool(found.bypass[into].any()), "only heads bring anything to what attention writes"
    for layer in saes.layers:
        ends_here = torch.tensor([target.startswith(f"A{layer}_") for _, target in found.edges])
        if hop == "last":
            assert not bool(found.heads[~ends_here, layer].any()), "no head goes past the features of its layer"
        assert bool(found.heads[ends_here, layer].any())


@pytest.mark.parametrize("name", [PLAIN, "neox-parallel"])
def test_parts_of_a_score_are_features_of_attention_too(name: str) -> None:
    lens = as_lens(models.build(name))
    sets, saes = models.random_set(lens), models.random_saes(lens, layers=[1])
    score = pb.qk_attribution(lens, sets, tokens_of(6), 2, 1, 5, 3, attention_saes=saes)
    plain = pb.qk_attribution(lens, sets, tokens_of(6), 2, 1, 5, 3)
    assert score.check() <= 1e-10
    assert score.score == pytest.approx(plain.score, abs=1e-12)
    assert {"attention_feature", "attention_error", "head"} <= set(score.query.kinds)
    assert not any(part.startswith("1_head") for part in score.query.names)


def test_the_estimate_counts_their_edges() -> None:
    lens = as_lens(models.build(PLAIN))
    sets, saes = models.random_set(lens), models.random_saes(lens, layers=[0, 2])
    graph = pb.attribute(lens, sets, tokens_of(7), max_n_logits=1, attention_saes=saes)
    assert expected_edges(local_model(lens, sets, tokens_of(7), attention_saes=saes)) == graph.n_edges


@pytest.mark.parametrize("offload", ["disk"])
def test_a_prompt_in_files_gives_the_same_graph(offload: str) -> None:
    lens = as_lens(models.build(PLAIN))
    sets, saes = models.random_set(lens), models.random_saes(lens)
    whole = pb.attribute(lens, sets, tokens_of(6), attention_saes=saes)
    assert_same_edges(pb.attribute(lens, sets, tokens_of(6), attention_saes=saes, offload=offload), whole, 1e-12)


def test_other_dictionaries_are_refused() -> None:
    lens = as_lens(models.build(PLAIN))
    sets = models.random_set(lens)
    with pytest.raises(ValueError, match="read and write hook_attn_out"):
        pb.attribute(lens, sets, tokens_of(4), attention_saes=sets)
    with pytest.raises(ValueError, match="autoencoders of hook_attn_out"):
        pb.attribute(lens, models.random_saes(lens), tokens_of(4))
    graph = pb.attribute(lens, sets, tokens_of(4), attention_saes=models.random_saes(lens))
    with pytest.raises(ValueError, match="make the graph without attention_saes"):
        graph.to_circuit_tracer("nowhere.pt")
