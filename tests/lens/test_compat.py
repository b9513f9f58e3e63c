"""Transcoders of another model are refused, and the sentence names what differs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from pullback.lens import Lens, as_lens
from pullback.transcoders import ReLU, Transcoder, TranscoderSet
from tests import models


def lens_of(name: str, seed: int = 0) -> Lens:
    return as_lens(models.build(name, seed=seed))


def with_reading(sets: TranscoderSet, **changes: Any) -> TranscoderSet:
    for tc in sets.values():
        assert tc.reading is not None
        tc.reading = replace(tc.reading, **changes)
    return sets


def blank(d_in: int, d_out: int, **hooks: str) -> Transcoder:
    weights = (torch.ones(4, d_in), torch.zeros(4), torch.ones(4, d_out), torch.zeros(d_out))
    return Transcoder(*weights, activation=ReLU(), **hooks)


@pytest.mark.parametrize("name", ["LN-gqa-standard-plain", "RMSPre-mha-rotary-gated", "neox-parallel", "gpt2-folded"])
def test_its_own_transcoders_are_accepted(name: str) -> None:
    lens = lens_of(name)
    lens.check(models.random_set(lens))
    lens.check(models.random_set(lens, layers=[2], hook_in="ln2.hook_normalized"), strict=False)


def test_the_same_model_in_another_dtype_is_the_same_model() -> None:
    sets = models.random_set(lens_of("gpt2"))
    as_lens(models.gpt2(dtype=torch.float32)).check(sets)
    as_lens(models.gpt2(dtype=torch.bfloat16)).check(sets)


def test_other_weights_of_the_same_shape() -> None:
    sets, other = models.random_set(lens_of("gpt2")), lens_of("gpt2", seed=1)
    with pytest.raises(ValueError, match="layer 0 was trained on the MLP of .* other weights there; pass strict=False"):
        other.check(sets)
    other.check(sets, strict=False)


def test_another_layer_of_the_same_model() -> None:
    lens = lens_of("gpt2")
    moved = TranscoderSet({2: models.random_set(lens)[0]})
    with pytest.raises(ValueError, match="layer 2 was trained at layer 0; pass strict=False"):
        lens.check(moved)
    lens.check(moved, strict=False)


@pytest.mark.parametrize("strict", [True, False])
def test_shapes_are_compared_always(strict: bool) -> None:
    lens = lens_of("gpt2")
    for d_in, d_out in ((8, 16), (16, 8), (32, 32)):
        with pytest.raises(ValueError, match=f"layer 0 maps {d_in} to {d_out} dimensions.*d_model 16"):
            lens.check(TranscoderSet({0: blank(d_in, d_out)}), strict=strict)
    with pytest.raises(ValueError, match=r"a transcoder for layer 3, but .* has layers 0\.\.2"):
        lens.check(TranscoderSet({1: blank(16, 16), 3: blank(16, 16)}), strict=strict)
    with pytest.raises(ValueError, match="hook_in must be one of .*got 'attn.hook_z'"):
        lens.check(TranscoderSet({0: blank(16, 16, hook_in="attn.hook_z")}), strict=strict)
    with pytest.raises(ValueError, match="hook_out must be one of .*got 'hook_resid_post'"):
        lens.check(TranscoderSet({0: blank(16, 16, hook_out="hook_resid_post")}), strict=strict)
    with pytest.raises(ValueError, match="mlp.hook_in -> hook_attn_out: attention mixes positions"):
        lens.check(TranscoderSet({0: blank(16, 16, hook_out="hook_attn_out")}), strict=strict)


@pytest.mark.parametrize("strict", [True, False])
def test_norm_and_wiring_are_compared_always(strict: bool) -> None:
    with pytest.raises(ValueError, match="trained behind a LN norm, and native has RMS"):
        lens_of("RMS-mha-standard-plain").check(models.random_set(lens_of("LN-mha-standard-plain")), strict=strict)
    with pytest.raises(ValueError, match="trained in a parallel block, and this one is sequential"):
        lens_of("LN-mha-rotary-plain").check(models.random_set(lens_of("neox-parallel")), strict=strict)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("hook_in", ["mlp.hook_in", "ln2.hook_out"])
def test_folding_is_compared_behind_the_affine(strict: bool, hook_in: str) -> None:
    raw, folded = lens_of("gpt2"), lens_of("gpt2-folded")
    with pytest.raises(ValueError, match=f"trained at {hook_in} of a model whose norms were not folded.* are folded"):
        folded.check(models.random_set(raw, hook_in=hook_in), strict=strict)
    with pytest.raises(ValueError, match="norms were folded.* here they are not folded; open the model the same way"):
        raw.check(models.random_set(folded, hook_in=hook_in), strict=strict)


@pytest.mark.parametrize("hook_in", ["ln2.hook_normalized", "hook_resid_mid"])
def test_folding_does_not_matter_before_the_affine(hook_in: str) -> None:
    raw, folded = lens_of("gpt2"), lens_of("gpt2-folded")
    folded.check(models.random_set(raw, hook_in=hook_in))
    raw.check(models.random_set(folded, hook_in=hook_in))
    x_raw = raw.mlp_io(torch.arange(5)[None], [1], hook_in="ln2.hook_normalized")[1][0]
    x_folded = folded.mlp_io(torch.arange(5)[None], [1], hook_in="ln2.hook_normalized")[1][0]
    assert torch.allclose(x_raw, x_folded, atol=1e-9), "that is why it may be allowed"


def test_sizes_tell_where_fingerprints_cannot() -> None:
    lens = lens_of("gpt2")
    for what in ("n_layers", "d_vocab"):
        sets = with_reading(models.random_set(lens), mlp_fingerprint=None, **{what: 99})
        with pytest.raises(ValueError, match=f"with {what} 99, and .* pass strict=False"):
            lens.check(sets)
        lens.check(sets, strict=False)
    lens.check(with_reading(models.random_set(lens), mlp_fingerprint=None))
    lens.check(TranscoderSet({0: blank(16, 16)}))
