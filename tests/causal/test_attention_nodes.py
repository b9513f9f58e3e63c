"""Circuits whose nodes are features and errors of attention outputs too, put to the test by running the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pullback as pb
from pullback.attribution import nodes as k
from pullback.causal import Ablation, CircuitRunner, Margin, NodeSet, circuit_faithfulness, hierarchical_scores
from pullback.lens import Lens, as_lens
from tests import models
from tests.attribution.test_identities import tokens_of

NAMES = ["LN-gqa-standard-plain", "RMS-gqa-rotary-gated", "neox-parallel"]
TOKENS = tokens_of(6)


def opened(name: str, **options: Any) -> tuple[Lens, Any, Any]:
    lens = as_lens(models.build(name))
    return lens, models.random_set(lens), models.random_saes(lens, **options)


def with_outputs(lens: Lens, outputs: dict[str, Any]) -> torch.Tensor:
    """Logits (T, V) where functions change what is written at sites."""
    return lens.record(TOKENS[None], [], list(outputs.items()))[0][0]


@pytest.mark.parametrize("name", NAMES)
def test_all_nodes_are_the_model_and_no_nodes_are_the_biases(name: str) -> None:
    lens, sets, saes = opened(name)
    nodes = NodeSet.active(lens, sets, TOKENS, attention_saes=saes)
    runner = CircuitRunner(lens, sets, TOKENS, nodes, freeze=None, attention_saes=saes)
    everything = torch.ones(len(nodes), dtype=torch.bool)
    assert torch.allclose(runner.logits(everything), lens.logits(TOKENS[None])[0], atol=1e-9)
    biases = {f"blocks.{i}.hook_attn_out": saes.b_dec(i) for i in saes.layers}
    biases |= {f"blocks.{i}.hook_mlp_out": sets.b_dec(i) for i in sets.layers}
    alone = with_outputs(lens, {site: lambda y, b=b: b.expand_as(y).clone() for site, b in biases.items()})
    assert torch.allclose(runner.logits(~everything), alone, atol=1e-9)


@pytest.mark.parametrize("layers", [None, [1]])
def test_one_node_less_is_one_vector_less(layers: list[int] | None) -> None:
    lens, _, saes = opened(NAMES[0], layers=layers)
    # Of the last layer that has features at all: features that become active only then would be taken out as well.
    layer = saes.layers[-1]
    sets = models.random_set(lens, layers=list(range(layer)))
    nodes = NodeSet.active(lens, sets, TOKENS, attention_saes=saes)
    kept = torch.ones(len(nodes), dtype=torch.bool)
    runner = CircuitRunner(lens, sets, TOKENS, nodes, freeze=None, attention_saes=saes)
    for is_error in (False, True):
        which = nodes.attention & (nodes.layer == layer) & (nodes.is_error == is_error) & (nodes.pos == 4)
        one = int(which.nonzero()[0, 0])
        y = lens.record_only(TOKENS[None], [site := f"blocks.{layer}.hook_attn_out"])[site][0]
        if is_error:
            vector = y[4] - saes.reconstruct(layer, {layer: saes.encode(layer, y)}, y)[4]
        else:
            feature = int(nodes.feature[one])
            vector = saes.encode(layer, y).to_dense()[4, feature] * saes.decoder(layer, layer)[feature]
        less = torch.zeros_like(y).index_copy_(0, torch.tensor([4]), vector[None])
        expected = with_outputs(lens, {site: lambda y, less=less: y - less})
        got = runner.logits(kept.index_fill(0, torch.tensor([one]), False))
        assert torch.allclose(got, expected, atol=1e-9)
        assert not torch.allclose(got, lens.logits(TOKENS[None])[0], atol=1e-4)


@pytest.mark.parametrize("kind", ["mean", "resample"])
def test_what_stands_in_for_them(kind: str) -> None:
    lens, _, saes = opened(NAMES[0])
    layer, others = 2, [tokens_of(6, 5), tokens_of(6, 6)]
    sets = models.random_set(lens, layers=list(range(layer)))
    nodes = NodeSet.active(lens, sets, TOKENS, attention_saes=saes)
    if kind == "mean":
        ablation = Ablation.mean(lens, sets, others, attention_saes=saes)
        used = others
    else:
        ablation = Ablation.resample(lens, sets, others[0], attention_saes=saes)
        used = others[:1]
    runner = CircuitRunner(lens, sets, TOKENS, nodes, ablation, freeze=None, attention_saes=saes)
    site = f"blocks.{layer}.hook_attn_out"
    seen = torch.stack([lens.record_only(tokens[None], [site])[site][0] for tokens in used])
    z = torch.stack([saes.encode(layer, y).to_dense() for y in seen])
    error = seen - torch.stack([saes.reconstruct(layer, {layer: saes.encode(layer, y)}, y) for y in seen])
    if kind == "mean":
        z, error = (x.flatten(0, 1).mean(0).expand(6, -1) for x in (z, error))
    else:
        z, error = z[0], error[0]
    here = nodes.attention & (nodes.layer == layer)
    y = lens.record_only(TOKENS[None], [site])[site][0]
    active = saes.encode(layer, y).to_dense() != 0
    written = (z * active) @ saes.decoder(layer, layer)[:] + saes.b_dec(layer) + error
    assert torch.allclose(runner.logits(~here), with_outputs(lens, {site: lambda _y: written[None]}), atol=1e-9)


def test_circuits_of_graphs_are_judged() -> None:
    lens, sets, saes = opened(NAMES[0])
    graph = pb.attribute(lens, sets, TOKENS, attribution_targets=[3, 7], attention_saes=saes)
    everything = torch.ones(graph.n_nodes, dtype=torch.bool)
    given = {"measure": Margin(3, 7), "attention_saes": saes}
    assert circuit_faithfulness(lens, sets, graph, everything, **given) == pytest.approx(1, abs=1e-9)
    without = ~graph.of_kind(k.ATTENTION_FEATURE, k.ATTENTION_ERROR)
    assert abs(circuit_faithfulness(lens, sets, graph, without, **given) - 1) > 1e-3
    assert circuit_faithfulness(lens, sets, graph, everything, errors="dropped", **given) != pytest.approx(1, abs=1e-3)
    scores = {"hierarchical": hierarchical_scores(graph, Margin(3, 7))}
    curves = pb.faithfulness_curves(
        lens, sets, graph, scores, margin=Margin(3, 7), sizes=(0.5, 1.0), attention_saes=saes
    )
    curve = curves.curves["hierarchical"]["signed"]
    assert curve.n_nodes[-1] == int(graph.of_kind(*k.FEATURES, *k.ERRORS).sum())
    assert curve.faithfulness[-1] == pytest.approx(1, abs=1e-9)
    assert curve.recovery[-1] == pytest.approx(1, abs=1e-9)


def test_a_feature_of_attention_is_a_measure() -> None:
    lens, sets, saes = opened(NAMES[0])
    found = pb.hierarchical(
        lens, sets, TOKENS, target := pb.FeatureTarget(2, 5, 3, attention=True), attention_saes=saes, tau=0.0
    )
    everything = torch.ones(found.whole.n_nodes, dtype=torch.bool)
    given = {"measure": target, "attention_saes": saes, "errors": "kept"}
    assert circuit_faithfulness(lens, sets, found.whole, everything, **given) == pytest.approx(1, abs=1e-9)
    assert float(found.kept.sum()) < len(found.kept)
    assert circuit_faithfulness(lens, sets, found.whole, found.kept, **given) != pytest.approx(1, abs=1e-4)


def test_what_does_not_fit_is_refused() -> None:
    lens, sets, saes = opened(NAMES[0])
    graph = pb.attribute(lens, sets, TOKENS, attention_saes=saes)
    with pytest.raises(ValueError, match="give attention_saes"):
        CircuitRunner.of(lens, sets, graph)
    with pytest.raises(ValueError, match="give attention_saes"):
        pb.node_scores(lens, sets, graph)
    with pytest.raises(ValueError, match="says nothing of features of attention"):
        CircuitRunner.of(lens, sets, graph, ablation=Ablation.zero(lens, sets), attention_saes=saes)
