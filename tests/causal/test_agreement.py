"""What a graph foretells against what happens: exact where it must be, and a score where it need not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pullback as pb
from pullback.attribution.nodes import ATTENTION_ERROR, ATTENTION_FEATURE, FEATURE, FEATURES, LOGIT
from pullback.causal import Margin, margin_of, predicted, total_effects
from pullback.causal.agreement import _nmse, _or_none, _stratified, _Test
from pullback.lens import as_lens, trace
from pullback.lens.freeze import put
from tests import families, models
from tests.causal.exact import exact_saes, own_mlps, prompts, relu_model

TOKENS, OTHER = prompts(2, 6, seed=1)


@pytest.mark.parametrize("at_attention", [[], [1], [0, 1, 2]])
@pytest.mark.parametrize("draw", [models.random_set, models.random_clt])
@pytest.mark.parametrize("name", ["LN-gqa-standard-plain", "RMS-gqa-rotary-gated", "neox-parallel"])
def test_with_everything_frozen_a_graph_foretells_everything(name: str, draw: Any, at_attention: list[int]) -> None:
    """Errors, biases and skip paths included: random dictionaries explain little, and still nothing is missed."""
    lens = as_lens(models.build(name))
    sets, saes = draw(lens, skip=True), models.random_saes(lens, layers=at_attention) if at_attention else None
    graph = pb.attribute(lens, sets, TOKENS, attention_saes=saes)
    # With features in the way of every head, those of the last position alone reach the margin directly.
    n = 6 if len(at_attention) < 3 else 24
    given: Any = {"n": n, "share": 1, "runs": ["direct"], "attention_saes": saes}
    for factor in (0.0, 3.0):
        found = pb.agreement(lens, sets, graph, factor=factor, **given).runs["direct"]
        assert found.spearman == pytest.approx(1, abs=1e-12)
        assert found.cosine == pytest.approx(1, abs=1e-12)
        assert found.nmse < 1e-20


@pytest.mark.parametrize("name", ["gemma2", "olmo2", "phi"])
def test_so_it_does_behind_norms_that_follow_attention_and_in_parallel_blocks(name: str) -> None:
    lens = as_lens(families.build(name))
    sets, saes = models.random_set(lens), models.random_saes(lens, layers=[0, 2])
    graph = pb.attribute(lens, sets, TOKENS, attention_saes=saes)
    test = _Test(lens, (sets, saes), graph, trace(lens, TOKENS), margin_of(graph), factor=0.0)
    for node in graph.of_kind(ATTENTION_FEATURE).nonzero()[::9, 0].tolist():
        (foretold, changes), (measured, seen) = test._foretold("direct", node), test._measured("direct", node)
        assert float(foretold) == pytest.approx(float(measured), abs=1e-9)
        later = test.nodes.depth > graph.nodes.depth[node]
        assert torch.allclose(changes[later], seen[later], atol=1e-9)
        below_the_last = bool(graph.nodes.layer[node] < 2)
        assert bool(seen[test.nodes.kind == FEATURE].any()) == (below_the_last or not lens.parallel)
        assert bool(seen[test.nodes.kind == ATTENTION_FEATURE].any()) == below_the_last


def test_what_is_held_below_a_feature_ends_at_its_own_place() -> None:
    """Of attention, the MLP of its layer runs on; of an MLP, it does not."""
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    sets, saes = models.random_set(lens), models.random_saes(lens)
    graph = pb.attribute(lens, sets, TOKENS, attention_saes=saes)
    test = _Test(lens, (sets, saes), graph, trace(lens, TOKENS), margin_of(graph), factor=0.0)
    in_layer_1 = graph.nodes.layer == 1
    of_attention = int((graph.of_kind(ATTENTION_FEATURE) & in_layer_1).nonzero()[4])
    of_mlp = int((graph.of_kind(FEATURE) & in_layer_1).nonzero()[4])
    assert list(test._holding("constrained", of_attention)) == [0]
    assert list(test._holding("constrained", of_mlp)) == [0, 1]
    for node in (of_attention, of_mlp):
        assert list(test._holding("direct", node)) == [0, 1, 2]
        assert not list(test._holding("unconstrained", node))
    place = (test.nodes.layer == 1) & (test.nodes.kind == FEATURE)
    direct, run_on = test._foretold("direct", of_attention)[1], test._foretold("constrained", of_attention)[1]
    assert torch.allclose(direct[place], run_on[place], atol=1e-12)
    assert not torch.allclose(direct, run_on, atol=1e-3), "what its own MLP passes on is foretold"
    z, feature = float(graph.nodes.activation[of_attention]), int(graph.nodes.feature[of_attention])
    pos = int(graph.nodes.pos[of_attention])
    less = torch.zeros(1, 6, lens.d_model, dtype=lens.dtype)
    less[0, pos] = z * saes[1].W_dec[feature]
    patterns = [(f"blocks.{i}.attn.hook_pattern", put(p.pattern)) for i, p in enumerate(test.base.layers)]
    logits, seen = lens.record(
        TOKENS[None], ["blocks.2.hook_attn_out"], [*patterns, ("blocks.1.hook_attn_out", lambda y: y - less)]
    )
    effect, moved = test._measured("constrained", of_attention)
    margin = margin_of(graph)
    assert float(effect) == pytest.approx(float(margin(logits)[0] - margin(test.base.logits)), abs=1e-9)
    above = (test.nodes.layer == 2) & (test.nodes.kind == ATTENTION_FEATURE)
    after = saes[2].preactivations(seen["blocks.2.hook_attn_out"][0], test.nodes.pos[above], test.nodes.feature[above])
    assert torch.allclose(moved[above], after - test.before[above], atol=1e-9)


@pytest.mark.parametrize(("name", "cosine"), [("LN-gqa-standard-plain", 1.0), ("neox-parallel", None)])
def test_downstream_of_attention_is_the_mlp_of_its_own_layer(name: str, cosine: float | None) -> None:
    """In the last layer nothing else is; and in a parallel block, that is not."""
    lens = as_lens(models.build(name))
    sets, saes = models.random_set(lens), models.random_saes(lens)
    graph = pb.attribute(lens, sets, TOKENS, attention_saes=saes)
    last = int((graph.of_kind(ATTENTION_FEATURE) & (graph.nodes.layer == 2) & (graph.nodes.pos == 5)).nonzero()[0])
    test = _Test(lens, (sets, saes), graph, trace(lens, TOKENS), margin_of(graph), factor=0.0)
    assert test.run("direct", [last]).cosine == (None if cosine is None else pytest.approx(cosine, abs=1e-12))


def test_edges_explain_logits_before_a_soft_cap() -> None:
    lens = as_lens(models.native(seed=0, output_logits_soft_cap=3.0))
    sets = models.random_set(lens)
    graph = pb.attribute(lens, sets, TOKENS)
    test = _Test(lens, (sets,), graph, trace(lens, TOKENS), margin_of(graph), factor=0.0)
    for node in _stratified(graph, 4, 1.0, seed=0):
        (foretold, _), (measured, _) = test._foretold("direct", node), test._measured("direct", node)
        assert float(foretold) == pytest.approx(float(measured), abs=1e-9)


def test_runs_that_are_not_frozen_agree_less() -> None:
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    sets = models.random_set(lens)
    graph = pb.attribute(lens, sets, TOKENS)
    found = pb.agreement(lens, sets, graph, n=8)
    assert found.n == 8
    for run in ("constrained", "unconstrained"):
        assert found.runs[run].nmse > 1e-3
        assert 0 < found.runs[run].cosine < 1 - 1e-3


def linear_model() -> tuple[Any, Any]:
    """No norm, and ReLUs that are all on and far from off: with patterns held, the margin is linear in every node."""
    model = models.native(seed=31, normalization_type=None, act_fn="relu")
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.b_in.add_(500.0)
            block.mlp.W_out.mul_(1e-3)
    lens = as_lens(model)
    return lens, own_mlps(lens)


@pytest.mark.parametrize("at_attention", [[], [1], [0, 1, 2]])
def test_where_the_model_is_linear_total_effects_are_what_happens(at_attention: list[int]) -> None:
    lens, sets = linear_model()
    saes = exact_saes(lens, layers=at_attention) if at_attention else None
    graph = pb.attribute(lens, sets, TOKENS, attention_saes=saes)
    margin = margin_of(graph)
    effects = total_effects(graph, margin)
    base = margin(lens.logits(TOKENS[None]))
    for node_id in ["0_5_2", "2_1_5", *(f"A{i}_{f}_{pos}" for i in at_attention for f, pos in ((3, 5), (7, 2)))]:
        node = graph.node_ids().index(node_id)
        one = pb.Supernode.from_node_ids(node_id, [node_id])
        after = margin(pb.intervene(lens, sets, TOKENS, [(one, 0.0)], attention_saes=saes)[None])
        assert float(effects[node]) == pytest.approx(float(base - after), abs=1e-8 * float(base.abs()))
    given: Any = {"n": 9, "factor": 0.5, "runs": ["constrained"], "attention_saes": saes}
    found = pb.agreement(lens, sets, graph, **given).runs["constrained"]
    assert found.spearman == pytest.approx(1, abs=1e-12)
    assert found.nmse < 1e-16


def test_total_effects_are_the_inverse_of_one_less_the_slopes() -> None:
    """METHODS 5.1: act_t (I - A / act)^-1; leaves and what was dropped sum to the margin (O7)."""
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    sets = models.random_set(lens)
    graph = pb.attribute(lens, sets, TOKENS, attention_saes=models.random_saes(lens, layers=[1]))
    n, margin = graph.n_nodes, Margin(int(graph.nodes.feature[-1]), int(graph.nodes.feature[-2]))
    A = torch.zeros(n, n, dtype=torch.float64)
    A[graph.rows(), graph.sources.long()] = graph.weights
    a = torch.where(graph.of_kind(*FEATURES), graph.nodes.activation, 1)
    slopes = A / a  # of each source's column
    whole = torch.linalg.inv(torch.eye(n, dtype=torch.float64) - slopes)
    weights = margin.weights(graph)
    effects = total_effects(graph, margin)
    not_logit = ~graph.of_kind(LOGIT)
    assert torch.allclose(effects[not_logit], ((weights @ whole) * a)[not_logit], atol=1e-9)
    nodes = [int(graph.of_kind(kind).nonzero()[7]) for kind in FEATURES]
    for node in nodes:
        moved = predicted(graph, node, 1.5)
        later = torch.arange(n) != node
        assert torch.allclose(moved[later], 1.5 * whole[later, node], atol=1e-9)
        held = predicted(graph, node, 1.5, range(3))
        assert torch.allclose(held[later], 1.5 * slopes[later, node], atol=1e-12), "direct effects are edges"
    leaves = ~graph.of_kind(*FEATURES, LOGIT)
    assert float(effects[leaves].sum()) == pytest.approx(float(margin(lens.logits(TOKENS[None]))), abs=1e-9)


def test_the_score_stays_with_the_graph(tmp_path: Path) -> None:
    lens = relu_model()
    sets = own_mlps(lens)
    graph = pb.attribute(lens, sets, TOKENS)
    found = pb.agreement(lens, sets, graph, n=4, seed=3, runs=["direct", "unconstrained"])
    graph.save(tmp_path / "graph.safetensors")
    pruned = pb.Graph.load(tmp_path / "graph.safetensors").prune()
    pruned.to_neuronpedia(tmp_path / "graph.json")
    for kept in (pruned.meta["agreement"], pb.Graph.from_neuronpedia(tmp_path / "graph.json").meta["agreement"]):
        assert kept["n"] == 4
        assert kept["runs"]["unconstrained"]["cosine"] == found.runs["unconstrained"].cosine
    assert pb.agreement(lens, sets, graph, n=4, seed=3, runs=["direct", "unconstrained"]) == found
    one = pb.agreement(lens, sets, graph, n=1, runs=["direct"])
    assert one.runs["direct"].spearman is None, "one feature has no rank"


def test_figures_of_what_does_not_move_are_left_out() -> None:
    """A file could not hold them."""
    foretold, still = torch.tensor([1.0, 2.0]), torch.zeros(2)
    assert _or_none(_nmse([(foretold, still)])) is None
    assert _or_none(_nmse([(still, still)])) is None
    assert _or_none(_nmse([(still, foretold)])) == 1


def test_features_are_drawn_from_every_group() -> None:
    lens = relu_model()
    graph = pb.attribute(lens, own_mlps(lens), TOKENS)
    features = graph.of_kind(FEATURE).nonzero()[:, 0]
    ranked = features[torch.argsort(graph.influence()[features], descending=True, stable=True)].tolist()
    drawn = _stratified(graph, 10, 1.0, seed=0)
    size = len(ranked) / 10
    assert [int(ranked.index(node) // size) for node in drawn] == list(range(10))
    assert _stratified(graph, 10, 1.0, seed=1) != drawn
    assert _stratified(graph, 10**6, 1.0, seed=1) == ranked
    few = _stratified(graph, 10**6, 0.5, seed=0)
    total, influence = graph.influence()[features].sum(), graph.influence()
    assert float(influence[few].sum()) >= 0.5 * float(total) > float(influence[few[:-1]].sum())


def test_features_of_both_kinds_are_drawn() -> None:
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    sets, saes = models.random_set(lens), models.random_saes(lens, layers=[1])
    graph = pb.attribute(lens, sets, TOKENS, attention_saes=saes)
    kinds = set(graph.nodes.kind[_stratified(graph, 20, 1.0, seed=0)].tolist())
    assert kinds == {FEATURE, ATTENTION_FEATURE}


def test_a_margin_is_made_of_logit_nodes() -> None:
    lens = relu_model()
    graph = pb.attribute(lens, own_mlps(lens), TOKENS, attribution_targets=[4, 9])
    logits = lens.logits(TOKENS[None])
    for margin in (Margin(4, 9), Margin(9)):
        assert float(margin.weights(graph) @ graph.nodes.preactivation.nan_to_num()) == pytest.approx(
            float(margin(logits)), abs=1e-9
        )
    assert margin_of(graph) in (Margin(4, 9), Margin(9, 4))
    with pytest.raises(
        ValueError, match=r"the graph explains the tokens \[4, 9\], not 7; name it in attribution_targets"
    ):
        Margin(7).weights(graph)
    assert Margin(torch.tensor(4), np.int64(9)) == Margin(4, 9)  # pyright: ignore
    for wrong in ("austin", -1, 4.0, None):
        with pytest.raises(ValueError, match="target must be the id of a token"):
            Margin(wrong)  # pyright: ignore


def test_numbers_of_numpy_do_not_keep_a_graph_from_being_written(tmp_path: Path) -> None:
    lens = relu_model()
    sets = own_mlps(lens)
    graph = pb.attribute(lens, sets, TOKENS, attribution_targets=[4, 9])
    margin = Margin(np.int64(4), np.int64(9))  # pyright: ignore
    given: Any = {"n": np.int64(2), "seed": np.int64(3), "share": np.float32(1), "factor": np.float32(0)}
    found = pb.agreement(lens, sets, graph, margin=margin, runs=iter(["direct"]), **given)  # pyright: ignore
    assert found == pb.agreement(lens, sets, graph, n=2, seed=3, share=1, margin=Margin(4, 9), runs=["direct"])
    pruned = graph.prune(np.float32(0.5), torch.tensor(0.75))  # pyright: ignore
    pruned.save(tmp_path / "graph.safetensors")
    assert pb.Graph.load(tmp_path / "graph.safetensors").meta["pruning_settings"] == {
        "node_threshold": 0.5,
        "edge_threshold": 0.75,
    }
    assert pruned.to_neuronpedia(tmp_path / "graph.json")["metadata"]["agreement"]["target"] == 4


def test_what_cannot_be_compared_is_said() -> None:
    lens = as_lens(models.build("gpt2"))
    sets = models.random_set(lens)
    graph = pb.attribute(lens, sets, TOKENS)

    def refused(sentence: str, **options: Any) -> None:
        with pytest.raises(ValueError, match=sentence):
            pb.agreement(lens, sets, **{"graph": graph} | options)

    refused("there are the runs direct, constrained, unconstrained, not iterative", runs=["iterative"])
    refused("n must be at least 1", n=0)
    refused("share in", share=0.0)
    refused("factor 1 leaves features as they are", factor=1.0)
    empty = pb.attribute(lens, sets, TOKENS, max_feature_nodes=0)
    refused("the graph have features", graph=empty)
    graph.meta["tokens"] = OTHER.tolist()
    refused("not what this model and set compute on its prompt")


def test_other_autoencoders_than_the_graphs_are_refused() -> None:
    lens = as_lens(models.build("gpt2"))
    sets, saes = models.random_set(lens), models.random_saes(lens)
    graph, plain = pb.attribute(lens, sets, TOKENS, attention_saes=saes), pb.attribute(lens, sets, TOKENS)

    def refused(sentence: str, graph: pb.Graph, **given: Any) -> None:
        with pytest.raises(ValueError, match=sentence):
            pb.agreement(lens, sets, graph, n=2, **given)

    refused("is of attention.*give attention_saes", graph)
    refused("is of attention.*give attention_saes", graph, attention_saes=models.random_saes(lens, layers=[0]))
    refused("not what this model and set compute", graph, attention_saes=models.random_saes(lens, seed=8))
    refused(
        r"made with autoencoders of attention at layers \[\], and here .* at \[0, 1, 2\]", plain, attention_saes=saes
    )
    bare = graph.subgraph(~graph.of_kind(ATTENTION_FEATURE, ATTENTION_ERROR))
    refused(r"at layers \[0, 1, 2\], and here they are at \[\]", bare)
    assert pb.agreement(lens, sets, bare, n=2, runs=["direct"], attention_saes=saes).runs["direct"].nmse < 1e-20
