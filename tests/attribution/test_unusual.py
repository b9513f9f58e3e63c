"""What happens off the beaten path: 16-bit models, unlikely or odd targets, parts of graphs, damaged files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pullback as pb
from pullback.attribution import Graph, rows
from pullback.attribution import nodes as k
from pullback.attribution.exchange import neuronpedia
from pullback.attribution.gather import Rows
from pullback.attribution.local import local_model
from pullback.attribution.rules import EdgeRule
from pullback.lens import as_lens
from pullback.ops.edges import from_dense
from pullback.transcoders import BatchTopK, JumpReLU, TopK, Transcoder, TranscoderSet
from tests import models
from tests.attribution.test_graph import by_hand
from tests.attribution.test_identities import assert_same_edges, tokens_of

PLAIN = "LN-gqa-standard-plain"


def with_edges(graph: Graph, **fields: Any) -> Graph:
    return dataclasses.replace(graph, **fields)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_models_are_attributed_in_float32(dtype: torch.dtype) -> None:
    lens = as_lens(models.build(PLAIN, dtype))
    sets = models.random_set(lens)
    graph = pb.attribute(lens, sets, tokens_of(6), max_feature_nodes=20)
    assert graph.weights.dtype == torch.float32
    assert graph.check() <= 5e-2
    with pytest.raises(ValueError, match="runs in float32 and float64"):
        pb.attribute(lens, sets, tokens_of(6), engine="autograd")


ACTIVATIONS = [TopK(8, relu=False), BatchTopK(4), BatchTopK(4, threshold=0.1), JumpReLU(-0.1), JumpReLU(1e3)]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_every_activation_and_a_site_of_its_own_for_each_layer(activation: Any) -> None:
    """Negative features, features that depend on other rows, and layers in which nothing is active."""
    lens = as_lens(models.build(PLAIN))
    sites = ("hook_resid_mid", "ln2.hook_normalized", "mlp.hook_in")

    def like(tc: Transcoder, hook_in: str) -> Transcoder:
        weights = (w.detach() for w in (tc.W_enc, tc.b_enc, tc.W_dec, tc.b_dec))
        return Transcoder(*weights, activation=activation, hook_in=hook_in)

    sets = TranscoderSet({i: like(tc, sites[i]) for i, tc in models.random_set(lens).items()})
    linear = pb.attribute(lens, sets, tokens_of(6))
    assert linear.check() <= 1e-9
    assert_same_edges(linear, pb.attribute(lens, sets, tokens_of(6), engine="autograd"), 1e-9)
    assert pb.attribute(lens, sets, tokens_of(6), max_feature_nodes=3).check() <= 1e-9
    assert linear.prune().check() <= 1e-9


@pytest.mark.parametrize(
    "targets", ["w4", 4, np.int64(4), np.array([4]), [torch.tensor(4)], torch.tensor([4]), torch.tensor(4)]
)
def test_one_target_may_come_in_any_form(targets: Any) -> None:
    lens = as_lens(models.build("llama"))
    graph = pb.attribute(lens, models.random_set(lens), "w1 w2", attribution_targets=targets)
    assert graph.meta["logit_labels"] == ["w4"]


@pytest.mark.parametrize(
    ("name", "targets", "sentence"),
    [
        ("llama", [4, 4], "names a token twice"),
        ("llama", torch.tensor([4.7]), "token id or a string of one token"),
        ("llama", [None], "token id or a string of one token"),
        (PLAIN, ["w4"], "no tokenizer to read the target 'w4'"),
    ],
)
def test_odd_targets_get_a_sentence(name: str, targets: Any, sentence: str) -> None:
    lens = as_lens(models.build(name))
    with pytest.raises(ValueError, match=sentence):
        pb.attribute(lens, models.random_set(lens), tokens_of(3), attribution_targets=targets)


@pytest.mark.parametrize("likelihood", [1e-9, 1e-14, 1e-30])
def test_scores_do_not_depend_on_how_likely_the_explained_token_is(likelihood: float) -> None:
    hand = by_hand()
    activation = hand.nodes.activation.clone()
    activation[-2:] *= likelihood
    unlikely = with_edges(hand, nodes=dataclasses.replace(hand.nodes, activation=activation))
    assert unlikely.scores() == pytest.approx(hand.scores(), rel=1e-5)
    assert torch.allclose(unlikely.cumulative_influence(), hand.cumulative_influence(), rtol=1e-5)
    assert unlikely.prune(0.8, 1.0).node_ids() == hand.prune(0.8, 1.0).node_ids()


def test_a_bias_without_company_has_no_influence_to_speak_of() -> None:
    """logit0 gets its bias only: what does not count in the normalisation must not be divided by almost nothing."""
    hand = by_hand()
    weights = hand.weights.clone()
    weights[[4, 5]] = 0
    influence = with_edges(hand, weights=weights).influence()
    assert float(influence[hand.of_kind(k.BIAS)]) == 0
    assert float(with_edges(hand, weights=weights).influence(bias=True)[hand.of_kind(k.BIAS)]) == pytest.approx(0.75)


def test_threshold_one_keeps_what_is_too_small_to_show_in_a_sum() -> None:
    hand = by_hand()
    weights = hand.weights.clone()
    weights[3] = 1e-24  # the error's edge, and all the influence the error has
    small = with_edges(hand, weights=weights).prune(1.0, 1.0)
    assert "0_-1_1" in small.node_ids()
    assert small.n_edges == hand.n_edges


def test_a_part_without_a_logit_names_the_others_rightly() -> None:
    hand = by_hand()
    keep = torch.ones(hand.n_nodes, dtype=torch.bool)
    keep[-2] = False
    part = hand.subgraph(keep)
    assert [n["clerp"] for n in part.to_neuronpedia()["nodes"] if n["kind"] == "logit"] == ['Output "q" (p=0.250)']
    assert hand.meta["logit_labels"] == ["p", "q"], "the whole stays as it was"
    with pytest.raises(ValueError, match=r"keep_nodes must be a mask \[8\] of bool"):
        hand.subgraph(torch.tensor([0, 1]))


def test_a_notebook_gets_a_pruned_graph_where_the_whole_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = as_lens(models.build(PLAIN))
    graph = pb.attribute(lens, models.random_set(lens), tokens_of(6))
    whole = graph._repr_html_()
    monkeypatch.setattr(neuronpedia, "NOTEBOOK_EDGES", graph.n_edges - 1)
    assert len(graph._repr_html_()) < len(whole)


def test_graphs_can_be_compared_and_kept_in_sets() -> None:
    hand, other = by_hand(), by_hand()
    assert hand == hand  # noqa: PLR0124
    assert hand != other
    assert len({hand, other}) == 2


def test_a_rule_keeps_the_same_edges_however_many_rows_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = as_lens(models.build(PLAIN))
    local = local_model(lens, models.random_set(lens), tokens_of(3))
    n = local.layout.n_sources
    block = torch.randn(7, n, generator=torch.Generator().manual_seed(0)).relu()
    best = block.topk(3).values[:, -1:]
    for entries in (1, 100, 1 << 20):
        monkeypatch.setattr(rows, "CHUNK_ENTRIES", entries)
        edges = rows.EdgeRows(local.layout, EdgeRule(per_target=3))
        edges.append(torch.arange(7), Rows(torch.zeros(7), torch.zeros(7), torch.zeros(7), from_dense(block)))
        (found,) = edges.blocks
        counts = found.edges.counts(torch.arange(n, dtype=torch.int32))
        assert counts.tolist() == [3] * 7
        sources, weights = torch.zeros(21, dtype=torch.int32), torch.zeros(21)
        lost = found.edges.pack(torch.arange(n, dtype=torch.int32), counts.cumsum(0) - counts, counts, sources, weights)
        dense = torch.zeros_like(block).scatter_(1, sources.view(7, 3).long(), weights.view(7, 3))
        assert torch.equal(dense, block.where(block >= best, 0))
        assert not lost.any()
        torch.testing.assert_close(found.dropped, block.where(block < best, 0).sum(1))


def test_files_with_nan_or_cycles_are_refused(tmp_path: Path) -> None:
    """Summing influence along a cycle, or NaN, would never end."""
    hand, path = by_hand(), tmp_path / "graph.safetensors"
    weights = hand.weights.clone()
    weights[0] = torch.nan
    broken = with_edges(hand, weights=weights)
    with pytest.raises(ValueError, match="NaN or infinite"):
        broken.influence()
    broken.save(path)
    with pytest.raises(ValueError, match="NaN or infinite"):
        Graph.load(path)
    sources = hand.sources.clone()
    sources[0] = 3  # a <- b within layer 0
    with_edges(hand, sources=sources).save(path)
    with pytest.raises(ValueError, match="contradicts itself"):
        Graph.load(path)
    hand.save(path)
    assert Graph.load(path).n_edges == hand.n_edges
