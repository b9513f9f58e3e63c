"""Autoencoders stand in for the output that they read: of the MLP, or of attention."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pullback as pb
from pullback.lens import as_lens
from pullback.transcoders import TopK, Transcoder, TranscoderSet
from tests import models

NAMES = ["LN-gqa-standard-plain", "RMS-mha-rotary-gated", "neox-parallel", "gpt2-folded"]
SITES = ["hook_mlp_out", "mlp.hook_out", "hook_attn_out"]
TOKENS = torch.randint(0, models.VOCAB, (2, 6), generator=torch.Generator().manual_seed(4))


def autoencoders(lens: pb.Lens, hook: str, layers: range | list[int] = range(3)) -> TranscoderSet:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=lens.dtype) * 0.5

    return TranscoderSet(
        {
            layer: Transcoder(
                draw(40, 16), draw(40), draw(40, 16), draw(16),
                activation=TopK(6), hook_in=hook, hook_out=hook, reading=lens.reading(layer),
            )
            for layer in layers
        }
    )  # fmt: skip


@pytest.mark.parametrize("hook", SITES)
@pytest.mark.parametrize("name", NAMES)
def test_input_and_target_are_the_output_itself(name: str, hook: str) -> None:
    lens = as_lens(models.build(name))
    site = f"blocks.1.{'hook_attn_out' if hook == 'hook_attn_out' else 'hook_mlp_out'}"
    _, seen = lens.record(TOKENS, [site])
    x, y = lens.mlp_io(TOKENS, [1], hook_in=hook, hook_out=hook)[1]
    assert torch.equal(x, seen[site])
    assert torch.equal(y, seen[site])


@pytest.mark.parametrize("hook", SITES)
@pytest.mark.parametrize("name", NAMES)
def test_what_it_makes_of_the_output_goes_on_in_the_model(name: str, hook: str) -> None:
    """The stream behind each block is what came in, plus attention, plus the MLP, one of them reconstructed once."""
    lens = as_lens(models.build(name))
    sets = autoencoders(lens, hook)
    lens.check(sets)
    before = lens.logits(TOKENS)
    written = "hook_attn_out" if hook == "hook_attn_out" else "hook_mlp_out"
    sites = [f"blocks.{i}.{s}" for i in range(3) for s in ("hook_resid_pre", "hook_attn_out", "hook_mlp_out")]
    own: dict[int, Tensor] = {}

    def reconstruct(layer: int):  # noqa: ANN202
        def edit(y: Tensor) -> Tensor:
            own[layer] = y
            return sets[layer](y)

        return edit

    edits = [(f"blocks.{i}.{written}", reconstruct(i)) for i in range(3)]
    expected, seen = lens.record(TOKENS, [*sites, *(f"blocks.{i}.hook_resid_post" for i in range(3))], edits)
    for i in range(3):
        parts = {s: seen[f"blocks.{i}.{s}"] for s in ("hook_resid_pre", "hook_attn_out", "hook_mlp_out")}
        assert torch.equal(parts[written], sets[i](own[i]))
        assert torch.allclose(sum(parts.values()), seen[f"blocks.{i}.hook_resid_post"], atol=1e-9)
    with lens.replace(sets):
        assert torch.equal(lens.logits(TOKENS), expected)
    assert float((expected - before).abs().max()) > 1e-3
    assert torch.equal(lens.logits(TOKENS), before)


def test_a_pair_of_hooks_that_no_dictionary_has_is_refused() -> None:
    lens = as_lens(models.build("gpt2"))
    with pytest.raises(ValueError, match="mlp.hook_in -> hook_attn_out: attention mixes positions"):
        lens.mlp_io(TOKENS, hook_out="hook_attn_out")
    with pytest.raises(ValueError, match="hook_out must be one of .*got 'mlp.hook_in'"):
        lens.mlp_io(TOKENS, hook_in="mlp.hook_in", hook_out="mlp.hook_in")
    with pytest.raises(ValueError, match="hook_in must be one of .*got 'hook_mlp_out'"):
        lens.mlp_io(TOKENS, hook_in="hook_mlp_out", hook_out="hook_attn_out")


@pytest.mark.parametrize("hook", SITES[1:])
def test_attribution_goes_through_transcoders(hook: str) -> None:
    lens = as_lens(models.build("gpt2"))
    sets = TranscoderSet({0: models.random_set(lens)[0], **autoencoders(lens, hook, [1, 2])})
    with pytest.raises(ValueError, match=rf"attribution goes through transcoders.*layers \[1, 2\].*{hook}"):
        pb.attribute(lens.model, sets, TOKENS[0])
    with pytest.raises(ValueError, match="freeze='all' goes through transcoders"):
        pb.intervene(lens.model, sets, TOKENS[0], [(0, 1, 2, 3.0)], freeze="all")


def test_a_feature_of_attention_output_can_be_set() -> None:
    lens = as_lens(models.build("gpt2"))
    sets = autoencoders(lens, "hook_attn_out")
    _, seen = lens.record(TOKENS[:1], ["blocks.1.hook_attn_out"])
    z = sets.encode(1, seen["blocks.1.hook_attn_out"][0, 3]).to_dense()[0, 7]
    change = torch.zeros(1, 6, 16, dtype=lens.dtype)
    change[0, 3] = (5.0 - z) * sets[1].W_dec[7]
    expected, _ = lens.record(TOKENS[:1], [], [("blocks.1.hook_attn_out", lambda y: y + change)])
    given = pb.intervene(lens.model, sets, TOKENS[0], [(1, 3, 7, 5.0)], freeze=None)
    assert torch.allclose(given, expected[0], atol=1e-9)
