"""QK attributions: pairs sum to the score that the model computes, in every family, and each pair is its formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pullback as pb
from pullback.attribution.attention.components import components
from pullback.attribution.local import local_model
from pullback.lens import Lens, as_lens
from pullback.lens.scores import head_scores
from tests import families, models
from tests.attribution.test_identities import tokens_of

TOKENS = tokens_of(6)
NATIVE = ["LN-gqa-standard-plain", "RMS-gqa-rotary-gated", "LNPre-mha-rotary-plain"]
OPENED = ["gpt2", "gpt2-folded", "llama", "neox-parallel"]


def build(name: str, dtype: torch.dtype = torch.float64) -> Lens:
    return as_lens((families if name in families.FAMILIES else models).build(name, dtype))


def score_of_the_model(lens: Lens, layer: int, head: int, query: int, key: int) -> float:
    site = f"blocks.{layer}.attn.hook_attn_scores"
    return float(lens.record(TOKENS[None], [site])[1][site][0, head, query, key])


@pytest.mark.parametrize("name", [*OPENED, *families.FAMILIES])
def test_pairs_sum_to_the_score_of_the_model(name: str) -> None:
    """O13; behind the soft cap, where there is one."""
    lens = build(name)
    sets = models.random_set(lens, skip=True)
    for layer, head, query, key in ((0, 1, 5, 4), (1, 2, 5, 3), (2, 3, 4, 4)):
        found = pb.qk_attribution(lens, sets, TOKENS, layer, head, query, key)
        assert found.check() <= 1e-12
        assert float((found.query.vectors @ found.key.vectors.T).sum()) == pytest.approx(found.score, abs=1e-9)
        assert found.capped == pytest.approx(score_of_the_model(lens, layer, head, query, key), abs=1e-9)
        assert (found.capped != found.score) == (name == "gemma2")


@pytest.mark.parametrize("name", [*NATIVE, "gpt2", "gemma2", "gemma3"])
def test_a_difference_of_scores_is_the_log_ratio_of_the_pattern(name: str) -> None:
    lens = build(name)
    sets = models.random_clt(lens)
    log = local_model(lens, sets, TOKENS).trace.layers[1].pattern[2, 5].log()
    found = pb.qk_attribution(lens, sets, TOKENS, 1, 2, -1, -2, against=3)
    assert (found.query_pos, found.key_pos, found.against) == (5, 4, 3)
    assert found.check() <= 1e-12
    # Softmax runs in float32 where the family's own code does it.
    assert found.capped == pytest.approx(float(log[4] - log[3]), abs=1e-9 if name in NATIVE else 1e-5)
    apart = [pb.qk_attribution(lens, sets, TOKENS, 1, 2, 5, key).score for key in (4, 3)]
    assert found.score == pytest.approx(apart[0] - apart[1], abs=1e-12)


@pytest.mark.parametrize("name", ["neox-parallel", "gemma3", "LN-gqa-standard-plain"])
@pytest.mark.parametrize("cross_layer", [False, True])
def test_components_sum_to_the_stream(name: str, cross_layer: bool) -> None:
    lens = build(name)
    sets = (models.random_clt if cross_layer else models.random_set)(lens, skip=True, layers=[0, 2])
    local = local_model(lens, sets, TOKENS)
    for layer in range(3):
        parts = components(local, layer, 4)
        assert torch.allclose(parts.vectors.sum(0), local.trace.layers[layer].x_pre[4], atol=1e-10)
        assert len(set(parts.names)) == len(parts.names) == len(parts.kinds)
    kinds = {"embedding", "feature", "head", "bias", "error", "skip"} | ({"position"} if name in NATIVE else set())
    assert set(parts.kinds) == kinds


def test_a_pair_is_its_formula() -> None:
    """Two features of layer 0, read by a head of layer 1 of a grouped model without rotation."""
    lens = build("LN-gqa-standard-plain")
    sets = models.random_set(lens)
    local = local_model(lens, sets, TOKENS)
    (i, a), (j, b) = ([part[0] for part in local.acts[0].row(p)] for p in (5, 2))
    layer, attn = local.trace.layers[1], lens.model.blocks[1].attn
    ln1 = layer.weights.ln1
    assert ln1.w is not None
    read = [
        z * ln1.w * (row - row.mean()) / layer.ln1_scale[p]
        for z, row, p in ((a, sets.decoder(0, 0)[int(i)], 5), (b, sets.decoder(0, 0)[int(j)], 2))
    ]
    expected = (read[0] @ attn.W_Q[3]) @ (read[1] @ attn.W_K[1]) / 4**0.5
    found = pb.qk_attribution(lens, sets, TOKENS, 1, 3, 5, 2)
    assert found.pair(f"0_{i}_5", f"0_{j}_2") == pytest.approx(float(expected.detach()), abs=1e-12)


def test_marginals_and_top_pairs_are_those_of_the_whole_matrix() -> None:
    lens = build("qwen3")
    found = pb.qk_attribution(lens, models.random_set(lens), TOKENS, 2, 0, 5, 1, against=0)
    pairs = found.query.vectors @ found.key.vectors.T
    assert torch.allclose(found.query_marginals(), pairs.sum(1), atol=1e-12)
    assert torch.allclose(found.key_marginals(), pairs.sum(0), atol=1e-12)
    top = found.top_pairs(50)
    values = torch.tensor([value for _, _, value in top], dtype=torch.float64)
    assert torch.allclose(values.abs(), pairs.abs().flatten().sort(descending=True).values[:50], atol=1e-12)
    for query, key, value in top[:5]:
        assert found.pair(query, key) == pytest.approx(value, abs=1e-12)
    features = found.top_pairs(10_000, kinds=["feature"])
    names = [
        name
        for side in (found.query, found.key)
        for name, kind in zip(side.names, side.kinds, strict=True)
        if kind == "feature"
    ]
    assert {name for query, key, _ in features for name in (query, key)} == set(names)
    parts, table = found.to_pandas(7)
    assert len(parts) == len(found.query.names) + len(found.key.names)
    assert parts[parts.side == "query"].marginal.sum() == pytest.approx(found.score)
    assert table.value.tolist() == values[:7].tolist()
    assert "against 0" in repr(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gemma3", "neox-parallel"])
def test_other_precisions(name: str, dtype: torch.dtype) -> None:
    lens = build(name, dtype)
    found = pb.qk_attribution(lens, models.random_set(lens), TOKENS, 1, 0, 5, 2)
    assert found.check() <= {torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"layer": 3}, "layer must be in 0..2, got 3"),
        ({"head": 4}, "head must be in 0..3, got 4"),
        ({"key_pos": 6}, "key_pos must be in 0..5"),
        ({"key_pos": 5}, "key_pos 5 lies behind query_pos 4"),
        ({"against": 5}, "against 5 lies behind query_pos 4"),
        ({"against": 2}, "against is key_pos itself, 2"),
    ],
)
def test_scores_that_there_are_not(options: dict[str, Any], sentence: str) -> None:
    lens = build("gpt2")
    place = {"layer": 1, "head": 0, "query_pos": 4, "key_pos": 2} | options
    with pytest.raises(ValueError, match=sentence):
        pb.qk_attribution(lens, models.random_set(lens), TOKENS, **place)


def test_parts_that_there_are_not() -> None:
    lens = build("gpt2")
    found = pb.qk_attribution(lens, models.random_set(lens), TOKENS, 0, 0, 4, 2)
    with pytest.raises(ValueError, match="there is no part '0_1_9'"):
        found.pair("0_1_9", "P_2")
    with pytest.raises(ValueError, match="kinds must be among"):
        found.top_pairs(5, kinds=["neuron"])
    with pytest.raises(ValueError, match=r"no 5 pairs of kinds \['feature'\]"):
        found.top_pairs(5, kinds=["feature"])


def test_attention_that_is_no_softmax_of_its_scores_is_refused() -> None:
    """Bloom adds a bias by distance to its scores."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import BloomConfig, BloomForCausalLM

    config = BloomConfig(vocab_size=models.VOCAB, hidden_size=models.D_MODEL, n_layer=2, n_head=4)
    lens = as_lens(models._from_directory(TransformerBridge, BloomForCausalLM(config), 0, torch.float64))
    with pytest.raises(ValueError, match="is not the softmax of the scores .*not supported yet"):
        pb.qk_attribution(lens, models.random_set(lens), TOKENS, 1, 0, 5, 2)


def test_an_edited_query_norm_would_be_noticed() -> None:
    """Scales are read from the run that the pattern is from: one that is not is refused."""
    lens = build("qwen3")
    local = local_model(lens, models.random_set(lens), TOKENS)
    name = "blocks.1.attn.q_norm.hook_scale"
    lens.model.add_hook(name, lambda t, hook: t * 1.5)
    try:
        with pytest.raises(ValueError, match="is not the softmax of the scores"):
            head_scores(lens, local.trace, 1, 0)
    finally:
        lens.model.reset_hooks(including_permanent=True)
