"""Architecture families as TransformerLens opens them: graphs that sum and equal autograd's, or a sentence."""

from __future__ import annotations

import pytest
import torch

import pullback as pb
from pullback.attribution import nodes as k
from pullback.causal import run_interventions
from pullback.lens import as_lens, trace
from tests import families, models
from tests.attribution.test_identities import assert_same_edges, tokens_of


@pytest.mark.parametrize("name", families.FAMILIES)
def test_linear_engine_equals_autograd_and_sums_to_its_targets(name: str) -> None:
    lens = as_lens(families.build(name))
    sets = models.random_set(lens)
    linear = pb.attribute(lens, sets, tokens_of(6), max_n_logits=2)
    assert linear.check() <= 1e-9
    assert_same_edges(linear, pb.attribute(lens, sets, tokens_of(6), max_n_logits=2, engine="autograd"), 1e-9)


@pytest.mark.parametrize("name", families.DELEGATED)
def test_attention_that_hooks_cannot_hold_leaves_the_linear_engine(name: str) -> None:
    lens = as_lens(families.build(name))
    sets = models.random_set(lens)
    assert pb.attribute(lens, sets, tokens_of(6), max_n_logits=2).check() <= 1e-9
    with pytest.raises(ValueError, match="is not frozen or not linear, so this graph would be wrong"):
        pb.attribute(lens, sets, tokens_of(6), max_n_logits=2, engine="autograd")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("cohere", "the logits differ from the model's"), ("olmo", r"'input_layernorm' \(OlmoLayerNorm\) has no weights")],
)
def test_families_that_are_something_else_are_refused(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"{sentence}.*not supported yet"):
        trace(as_lens(families.build(name)), tokens_of(6))


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "olmo2"])
def test_norms_behind_attention_and_mlp(name: str) -> None:
    """Cross-layer features, skip paths and the perturbation oracle, where what is written is normed once more."""
    lens, tokens = as_lens(families.build(name)), tokens_of(6)
    skipping = models.random_clt(lens, skip=True)
    graphs = [pb.attribute(lens, skipping, tokens, max_n_logits=2, engine=engine) for engine in ("linear", "autograd")]
    assert_same_edges(*graphs, 1e-9)
    sets = models.random_clt(lens)
    graph = pb.attribute(lens, sets, tokens, max_n_logits=2)
    ids, nodes = graph.node_ids(), graph.nodes
    source = int((graph.of_kind(k.FEATURE) & (nodes.layer == 0) & (nodes.pos == 2)).nonzero()[0])
    twice = (0, 2, int(nodes.feature[source]), 2 * float(nodes.activation[source]))
    base, moved = (run_interventions(lens, sets, tokens, edits, freeze="all") for edits in ([], [twice]))
    change = moved.logits[-1] - base.logits[-1]
    for target in graph.of_kind(k.LOGIT).nonzero()[:, 0].tolist():
        edge = graph.edge(ids[source], ids[target])
        if lens.logit_soft_cap is None:
            assert float(change[nodes.feature[target]] - change.mean()) == pytest.approx(edge, abs=1e-9)
        assert abs(edge) > 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["qwen3", "gemma2", "gemma3"])
def test_other_precisions_are_traced(name: str, dtype: torch.dtype) -> None:
    lens = as_lens(families.build(name, dtype))
    assert trace(lens, tokens_of(6)).layers[1].attn_constant.dtype == torch.float32


def test_a_bias_of_a_norm_behind_attention_is_a_leaf() -> None:
    """No family has one with a bias in W_O too: the formula, on a trace made up for it."""
    import dataclasses

    from pullback.lens import Norm

    lens = as_lens(models.build("gpt2"))
    layer = trace(lens, tokens_of(5)).layers[1]
    generator = torch.Generator().manual_seed(0)
    w, b = (torch.randn(models.D_MODEL, generator=generator, dtype=torch.float64) for _ in range(2))
    scale = 1 + torch.rand(5, 1, generator=generator, dtype=torch.float64)
    norm = Norm("LN", w, b)
    weights = dataclasses.replace(
        layer.weights, ln1_post=norm, W_O=norm.linear(layer.weights.W_O), b_O=norm.linear(layer.weights.b_O)
    )
    behind = dataclasses.replace(layer, weights=weights, ln1_post_scale=scale)
    x = torch.randn(5, models.D_MODEL, generator=generator, dtype=torch.float64)
    assert torch.allclose(behind.attend(x), norm(layer.attend(x), scale), atol=1e-12)
    assert torch.allclose(behind.attn_constant, norm(layer.attn_constant, scale), atol=1e-12)
