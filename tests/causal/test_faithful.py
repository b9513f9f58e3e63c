"""Faithfulness by intervention: features outside of a circuit at zero or their mean, errors nodes, kept or dropped."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import pullback as pb
from pullback.attribution.hierarchical import Gate, circuit_of
from pullback.causal import Margin, NodeSet, circuit_faithfulness, graph_scores, hierarchical_scores
from pullback.lens import Lens, as_lens
from pullback.transcoders import TranscoderSet
from tests import models
from tests.causal.exact import own_mlps, prompts, relu_model

TOKENS, OTHER = prompts(2, 6, seed=1)
MARGIN = Margin(3, 7)
SIZES = [0.05, 0.2, 0.6, 1.0]


def asked(lens: Lens, sets: TranscoderSet) -> pb.Graph:
    return pb.attribute(lens, sets, TOKENS, attribution_targets=[MARGIN.target, MARGIN.other])


def by_hand(
    lens: Lens, sets: TranscoderSet, kept: set[tuple[int, int, int]], given: Tensor | None, errors: str
) -> tuple[Tensor, dict[int, Tensor]]:
    """Dense arithmetic at every layer, patterns live: logits, and what each transcoder reads. `given` (L, F) stands in
    for a feature that is active on the prompt and not kept; one that only becomes active writes nothing."""
    active = set(NodeSet.active(lens, sets, TOKENS).places())
    read: dict[int, Tensor] = {}

    def layer_of(i: int, x: Tensor, y: Tensor) -> Tensor:
        tc, read[i] = sets[i], x[0]
        z, rows = sets.encode(i, x[0]).to_dense(), []
        for p in range(x.shape[1]):
            new = torch.zeros_like(z[p])
            for f in range(tc.d_sae):
                if (i, p, f) in kept:
                    new[f] = z[p, f]
                elif (i, p, f) in active and given is not None:
                    new[f] = given[i, f]
            error = y[0, p] - (z[p] @ tc.W_dec + tc.b_dec)
            rows.append(new @ tc.W_dec + tc.b_dec + (error if errors == "kept" else 0))
        return torch.stack(rows)[None]

    with lens.patch_mlp({i: partial(layer_of, i) for i in sets.layers}):
        return lens.logits(TOKENS[None])[0], read


@pytest.mark.parametrize("errors", ["kept", "dropped"])
@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_curves_are_their_formula(kind: str, errors: str) -> None:
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    sets = models.random_set(lens)
    graph = asked(lens, sets)
    ablation, given = None, None
    if kind == "mean":
        ablation = pb.Ablation.mean(lens, sets, [TOKENS, OTHER])
        given = torch.cat([ablation.acts[i].to_dense() for i in range(3)])
    scores = graph_scores(graph, MARGIN)
    curves = pb.faithfulness_curves(
        lens, sets, graph, {"g": scores}, margin=MARGIN, ablation=ablation, errors=errors, sizes=SIZES, freeze=None
    )
    nodes = NodeSet.of(graph)
    ranked = [n for n in torch.argsort(scores, descending=True).tolist() if not nodes.is_error[n]]
    places = [nodes.places()[n] for n in ranked]

    def measure(kept: list[tuple[int, int, int]]) -> float:
        return float(MARGIN(by_hand(lens, sets, set(kept), given, errors)[0]))

    full, empty = float(MARGIN(lens.logits(TOKENS[None])[0])), measure([])
    curve = curves.curves["g"]["signed"]
    assert (curves.ablation, curves.errors) == (kind, errors)
    assert (curves.full, curves.empty) == pytest.approx((full, empty), abs=1e-9)
    assert curve.n_nodes == [int(size * len(ranked)) for size in SIZES]
    for n, f, c in zip(curve.n_nodes, curve.faithfulness, curve.completeness, strict=True):
        assert f == pytest.approx((measure(places[:n]) - empty) / (full - empty), abs=1e-9)
        assert c == pytest.approx((measure(places[n:]) - empty) / (full - empty), abs=1e-9)
    if errors == "kept":
        assert curve.faithfulness[-1] == pytest.approx(1, abs=1e-9)
        assert curve.recovery[-1] == pytest.approx(1, abs=1e-9)
    else:  # of random transcoders features alone are another model
        assert abs(curve.faithfulness[-1] - 1) > 1e-2
        assert abs(curve.recovery[-1] - 1) > 1e-2


def test_without_errors_in_the_model_keeping_and_dropping_them_is_the_same() -> None:
    lens = relu_model()
    sets = own_mlps(lens)
    graph = asked(lens, sets)
    scores = {"hierarchical": hierarchical_scores(graph, MARGIN), "graph": graph_scores(graph, MARGIN)}
    kept, dropped = (
        pb.faithfulness_curves(lens, sets, graph, scores, margin=MARGIN, errors=errors, sizes=SIZES)
        for errors in ("kept", "dropped")
    )
    for name, orders in kept.curves.items():
        for order, curve in orders.items():
            other = dropped.curves[name][order]
            assert curve.n_nodes == other.n_nodes
            for what in ("faithfulness", "completeness", "recovery"):
                assert getattr(curve, what) == pytest.approx(getattr(other, what), abs=1e-8)
            assert curve.faithfulness[-1] == pytest.approx(1, abs=1e-9)


def test_the_circuit_of_a_feature_is_judged_by_its_preactivation() -> None:
    """Against the reads of a run by hand; the circuit of everything is the model."""
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    sets = models.random_set(lens)
    layer, pos, feature = next(place for place in NodeSet.active(lens, sets, TOKENS).places() if place[:2] == (2, 4))
    target = pb.FeatureTarget(layer, pos, feature)
    graph = pb.attribute(lens, sets, TOKENS, attribution_targets=target)
    found = circuit_of(graph, gate=Gate(0.1, "abs", relative=True))
    kept = [place for place, k in zip(NodeSet.of(graph).places(), found.kept[NodeSet.mask(graph)], strict=True) if k]

    def h(read: dict[int, Tensor]) -> float:
        return float(read[layer][pos] @ sets[layer].W_enc[feature] + sets[layer].b_enc[feature])

    full = float(graph.nodes.preactivation[found.target])
    for errors in ("kept", "dropped"):
        ours = circuit_faithfulness(lens, sets, graph, found.kept, measure=target, errors=errors, freeze=None)
        circuit, empty = (h(by_hand(lens, sets, set(places), None, errors)[1]) for places in (kept, []))
        assert ours == pytest.approx((circuit - empty) / (full - empty), abs=1e-9)
    for last in (target, pb.FeatureTarget(layer, pos - 6, feature)):
        every = torch.ones_like(found.kept)
        assert circuit_faithfulness(lens, sets, graph, every, measure=last) == pytest.approx(1, abs=1e-9)


def test_what_cannot_be_judged_is_said() -> None:
    lens = as_lens(models.build("gpt2"))
    sets = models.random_set(lens)
    graph = asked(lens, sets)
    every = torch.ones(graph.n_nodes, dtype=torch.bool)

    def refused(sentence: str, keep: Tensor = every, **options: Any) -> None:
        with pytest.raises(ValueError, match=sentence):
            circuit_faithfulness(lens, sets, graph, keep, **options)

    refused("errors must be one of nodes, kept, dropped, got 'all'", errors="all")
    refused(rf"keep must be a mask \[{graph.n_nodes}\] of bool over the graph's nodes", every[1:])
    refused("node 2_40_1 is none of this prompt", measure=pb.FeatureTarget(2, 1, 40))
    whole = pb.attribute(lens, sets, TOKENS, attention_saes=models.random_saes(lens))
    with pytest.raises(ValueError, match="is of attention, and there are no autoencoders of its layer"):
        circuit_faithfulness(lens, sets, whole, torch.ones(whole.n_nodes, dtype=torch.bool))
    with pytest.raises(ValueError, match="errors must be one of nodes, kept, dropped, got 'some'"):
        pb.faithfulness_curves(lens, sets, graph, errors="some")
