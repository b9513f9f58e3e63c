"""Head loadings sum to their edges, exactly, and a head carries what goes through it and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pullback as pb
from pullback.attribution import nodes as k
from pullback.attribution.attention import loadings
from pullback.attribution.local import local_model
from pullback.lens import Lens, as_lens
from tests import families, models
from tests.attribution.test_identities import tokens_of

WIRINGS = [
    ("gpt2", True),
    ("gpt2-folded", False),
    ("llama", False),
    ("RMS-gqa-rotary-gated", True),
    ("neox-parallel", False),
    ("neox-parallel", True),
]


def graph_of(lens: Lens, sets: Any, **options: Any) -> pb.Graph:
    return pb.attribute(lens, sets, tokens_of(5), max_n_logits=2, **options)


def edges_of(graph: pb.Graph) -> torch.Tensor:
    """Weights of the edges in the order of the loadings: without own leaves."""
    return graph.weights[~graph.of_kind(k.OWN)[graph.sources.long()]]


@pytest.mark.parametrize("hop", ["last", "first"])
@pytest.mark.parametrize(("name", "skip"), WIRINGS)
def test_parts_sum_to_every_edge_of_a_graph(name: str, skip: bool, hop: str) -> None:
    lens = as_lens(models.build(name))
    sets = models.random_set(lens, skip=skip)
    graph = graph_of(lens, sets)
    found = pb.head_loadings(lens, sets, graph, hop=hop)
    scale = float(graph.weights.abs().max())
    assert float((found.weights - edges_of(graph)).abs().max()) <= 1e-9 * scale
    assert float(found.heads.abs().max()) > 1e-3
    assert float(found.bypass.abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["gemma2", "olmo2", "phi"])
def test_norms_behind_attention_and_norms_for_two(name: str) -> None:
    lens = as_lens(families.build(name))
    sets = models.random_set(lens)
    graph = graph_of(lens, sets)
    for hop in ("last", "first"):
        found = pb.head_loadings(lens, sets, graph, hop=hop)
        assert float((found.weights - edges_of(graph)).abs().max()) <= 1e-9 * float(graph.weights.abs().max())


@pytest.mark.parametrize("hop", ["last", "first"])
@pytest.mark.parametrize("tying", ["none", "per_target"])
@pytest.mark.parametrize("name", ["gpt2", "neox-parallel"])
def test_cross_layer_features_enter_at_every_layer_they_write_to(name: str, tying: str, hop: str) -> None:
    lens = as_lens(models.build(name))
    sets = models.random_clt(lens, tying=tying, skip=True, hook_in="ln2.hook_normalized")
    graph = graph_of(lens, sets)
    found = pb.head_loadings(lens, sets, graph, hop=hop)
    assert float((found.weights - edges_of(graph)).abs().max()) <= 1e-9 * float(graph.weights.abs().max())


def test_the_first_and_the_last_hop_differ_only_where_heads_follow_one_another() -> None:
    lens = as_lens(models.build("gpt2"))
    sets = models.random_set(lens)
    graph = graph_of(lens, sets)
    last, first = (pb.head_loadings(lens, sets, graph, hop=hop) for hop in ("last", "first"))
    assert torch.allclose(last.bypass, first.bypass, atol=1e-12)
    words = [[name.split("_") for name in edge] for edge in last.edges]
    one_between = torch.tensor([s[0].isdigit() and s[1] != "bias" and int(t[0]) - int(s[0]) == 1 for s, t in words])
    assert bool(one_between.any())
    assert torch.allclose(last.heads[one_between], first.heads[one_between], atol=1e-12)
    assert not torch.allclose(last.heads, first.heads, atol=1e-3)


def test_a_single_head_is_its_formula() -> None:
    """From a feature of layer 1 to one of layer 2 there is one attention layer: a_s pattern <W_dec, OV g>."""
    lens = as_lens(models.build("RMS-gqa-rotary-gated"))
    sets = models.random_set(lens)
    local = local_model(lens, sets, tokens_of(5))
    (j, z), (i, _) = ([part[0] for part in local.acts[layer].row(p)] for layer, p in ((1, 2), (2, 4)))
    found = pb.head_loadings(lens, sets, tokens_of(5), [(f"1_{j}_2", f"2_{i}_4")])
    layer = local.trace.layers[2]
    w, at = layer.weights, torch.tensor([4])
    assert w.ln1.w is not None
    g = layer.read_pullback("mlp.hook_in", sets.encoder_rows(2, [int(i)]), at)[0]
    for h in range(lens.n_heads):
        OV = w.W_V[h // 2] @ w.W_O[h]
        read = w.ln1.w * sets.decoder(1, 1)[int(j)] / layer.ln1_scale[2]
        carried = z * layer.pattern[h, 4, 2] * (read @ OV @ g)
        assert float(found.heads[0, 2, h]) == pytest.approx(float(carried), abs=1e-12)
    assert float(found.bypass) == 0, "the positions differ"
    assert float(found.heads[0, :2].abs().max()) == 0, "no head of a lower layer is on the way"


def test_features_that_are_not_active_and_logits_anywhere_are_targets_too() -> None:
    """Directions are not: a graph does not hold their vectors."""
    lens = as_lens(models.build("llama"))
    sets = models.random_set(lens)
    active = local_model(lens, sets, tokens_of(5)).acts[2].row(3)[0].tolist()
    asked = [
        pb.FeatureTarget(2, 3, next(f for f in range(40) if f not in active)),
        pb.LogitTarget(7, position=2),
        pb.DirectionTarget(torch.ones(lens.d_model, dtype=torch.float64)),
    ]
    graph = pb.attribute(lens, sets, tokens_of(5), attribution_targets=asked)
    found = pb.head_loadings(lens, sets, graph)
    kept = [(s, t) for s, t in found.edges if t in (graph.node_ids()[-3], graph.node_ids()[-2])]
    assert kept
    assert not any(t.startswith("D_") for _, t in found.edges)
    for (source, target), weight in zip(found.edges, found.weights.tolist(), strict=True):
        if target in graph.node_ids()[-3:]:
            assert weight == pytest.approx(graph.edge(source, target), abs=1e-9)


def without_output(silent: dict[int, list[int]]) -> Lens:
    """GPT-2 with heads that write nothing."""
    model = models.gpt2(seed=3)
    with torch.no_grad():
        for layer, heads in silent.items():
            weight = model.blocks[layer].attn.o.original_component.weight  # (n_heads d_head, d_model)
            for head in heads:
                weight[4 * head : 4 * head + 4] = 0
    return as_lens(model)


@pytest.mark.parametrize("hop", ["last", "first"])
def test_a_head_that_writes_nothing_carries_nothing(hop: str) -> None:
    lens = without_output({1: [2]})
    found = pb.head_loadings(lens, models.random_set(lens), graph_of(lens, models.random_set(lens)), hop=hop)
    carried = found.heads.abs().amax(0)
    assert float(carried[1, 2]) == 0
    carried[1, 2] = 1
    assert float(carried.min()) > 1e-3


@pytest.mark.parametrize("hop", ["last", "first"])
def test_without_heads_all_is_bypass(hop: str) -> None:
    lens = without_output(dict.fromkeys(range(3), range(4)))
    sets = models.random_set(lens)
    graph = graph_of(lens, sets)
    found = pb.head_loadings(lens, sets, graph, hop=hop)
    assert not bool(found.heads.any())
    assert torch.allclose(found.bypass, edges_of(graph), atol=1e-9)


@pytest.mark.parametrize("hop", ["last", "first"])
def test_a_few_ends_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch, hop: str) -> None:
    lens = as_lens(models.build("llama"))
    sets = models.random_set(lens)
    graph = graph_of(lens, sets).prune()
    whole = pb.head_loadings(lens, sets, graph, hop=hop)
    monkeypatch.setattr(loadings, "WORKING_MEMORY", 1)
    parts = pb.head_loadings(lens, sets, graph, hop=hop)
    assert parts.edges == whole.edges
    assert torch.allclose(parts.heads, whole.heads, atol=1e-12)


def test_tables() -> None:
    lens = as_lens(models.build("gpt2"))
    sets = models.random_set(lens)
    graph = graph_of(lens, sets)
    found = pb.head_loadings(lens, sets, graph, hop="first")
    table = found.to_pandas()
    assert len(table) == len(found.edges) * (1 + 3 * 4)
    last = table[-13:]
    assert last.loading.sum() == pytest.approx(float(found.weights[-1]))
    layer, head, loading = found.top(-1, 1)[0]
    row = last[(last.layer == layer) & (last["head"] == head)]
    assert row.loading.item() == loading
    assert abs(loading) == pytest.approx(float(found.heads[-1].abs().max()))
    assert "edges, hop='first'" in repr(found)


@pytest.mark.parametrize(
    ("edge", "sentence"),
    [
        (("P_9", "4_1_4"), "positions are 0..4"),
        (("E_99_0", "4_1_4"), "the token at position 0 is"),
        (("9_-1_0", "4_1_4"), "layers are 0..2"),
        (("own_4_1_4", "4_1_4"), "'own_4_1_4' is no source"),
        (("P_0", "5_1_4"), "'5_1_4' is no feature of the set"),
        (("nonsense", "4_1_4"), "'nonsense' is no source"),
        (("P_0", "E_1_0"), "'E_1_0' is no feature or logit"),
    ],
)
def test_names_that_are_no_nodes_get_a_sentence(edge: tuple[str, str], sentence: str) -> None:
    lens = as_lens(models.build("gpt2"))
    with pytest.raises(ValueError, match=sentence):
        pb.head_loadings(lens, models.random_set(lens), tokens_of(5), [edge])


def test_what_cannot_be_split_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = as_lens(models.build("gpt2"))
    sets = models.random_set(lens)
    graph = graph_of(lens, sets)
    with pytest.raises(ValueError, match="hop must be one of last, first"):
        pb.head_loadings(lens, sets, graph, hop="middle")
    with pytest.raises(ValueError, match="a prompt alone has no edges"):
        pb.head_loadings(lens, sets, tokens_of(5))
    with pytest.raises(ValueError, match="edges is empty"):
        pb.head_loadings(lens, sets, graph, [])
    with pytest.raises(ValueError, match=r"edges are pairs of node ids, \[\(source, target\), ...\]"):
        pb.head_loadings(lens, sets, graph, tuple(graph.node_ids()[-2:]))  # pyright: ignore
    monkeypatch.setattr(loadings, "LARGEST", 1000)
    with pytest.raises(ValueError, match=r"edges, whose loadings would take 0 GiB; prune it first"):
        pb.head_loadings(lens, sets, graph)
    monkeypatch.undo()
    inactive = next(f for f in range(40) if f not in local_model(lens, sets, tokens_of(5)).acts[0].row(1)[0])
    with pytest.raises(ValueError, match="is not active at position"):
        pb.head_loadings(lens, sets, graph, [(f"0_{inactive}_1", "4_1_4")])
    edge = pb.head_loadings(lens, sets, graph).edges[-1]
    with pytest.raises(ValueError, match="the graph was made with others"):
        pb.head_loadings(as_lens(models.gpt2(seed=1)), models.random_set(lens), graph, [edge], strict=False)
