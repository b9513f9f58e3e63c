"""No graph rather than a wrong one: where a freeze does not hold, a hook is missing, or transcoders do not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

import pullback as pb
from pullback.attribution import Settings, attribute_local
from pullback.attribution.local import LocalModel, local_model
from pullback.lens import as_lens
from pullback.lens import record as rec
from pullback.transcoders import TranscoderSet
from tests import models
from tests.attribution.test_identities import tokens_of

PLAIN = "LN-gqa-standard-plain"


def with_layer(local: LocalModel, layer: int, **changes: Any) -> LocalModel:
    layers = list(local.trace.layers)
    layers[layer] = dataclasses.replace(layers[layer], **changes)
    return dataclasses.replace(local, trace=dataclasses.replace(local.trace, layers=layers))


NOT_FROZEN: dict[str, Callable[[LocalModel], LocalModel]] = {
    "pattern": lambda m: with_layer(m, 1, pattern=m.trace.layers[1].pattern * 1.01),
    "ln1 scale": lambda m: with_layer(m, 2, ln1_scale=m.trace.layers[2].ln1_scale * 1.01),
    "ln2 scale": lambda m: with_layer(m, 0, ln2_scale=m.trace.layers[0].ln2_scale * 1.01),
    "final scale": lambda m: dataclasses.replace(
        m, trace=dataclasses.replace(m.trace, final_scale=m.trace.final_scale * 1.01)
    ),
    "attention's bias": lambda m: dataclasses.replace(m, attn_bias=[b * 1.01 for b in m.attn_bias]),
    "an MLP's error": lambda m: dataclasses.replace(m, errors=[m.errors[0] * 1.01, *m.errors[1:]]),
}


@pytest.mark.parametrize("what", NOT_FROZEN)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_is_not_as_it_was_at_the_forward_pass_shows_in_the_sums(what: str, dtype: torch.dtype) -> None:
    lens = as_lens(models.build(PLAIN, dtype))
    local = local_model(lens, models.random_set(lens), tokens_of(6))
    with torch.no_grad():
        attribute_local(lens, local, Settings())
        with pytest.raises(ValueError, match=r"miss its pre-activation by .* so this graph would be wrong"):
            attribute_local(lens, NOT_FROZEN[what](local), Settings())


@pytest.mark.parametrize("part", ["blocks.1.ln2", "blocks.1.attn.o", "blocks.2.mlp", "ln_final"])
def test_a_model_that_does_more_than_its_weights_gets_no_graph(part: str) -> None:
    model = models.native(seed=21)
    lens = as_lens(model)
    sets = models.random_set(lens)
    pb.attribute(lens, sets, tokens_of(4))
    handle = model.get_submodule(part).register_forward_hook(lambda _m, _a, out: out + 0.01 * out.abs())
    with pytest.raises(ValueError, match="is not linear here once patterns and norm scales are frozen"):
        pb.attribute(lens, sets, tokens_of(4))
    handle.remove()
    pb.attribute(lens, sets, tokens_of(4))


def _deaf(_tensor: Any, hook: Any = None) -> None:
    """A hook that hears nothing, as if its site were passed by."""


HOOKS = ["blocks.1.attn.hook_pattern", "blocks.2.hook_mlp_out", "ln_final.hook_scale", "hook_embed"]


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_is_missing_or_never_fires_is_named(hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.native(seed=22)
    lens = as_lens(model)
    sets = models.random_set(lens)
    pb.attribute(lens, sets, tokens_of(4))
    with monkeypatch.context() as patch:
        names = rec.hook_names(model) - {hook}
        patch.setattr(rec, "hook_names", lambda _model: names)
        with pytest.raises(ValueError, match=f"no hook '{hook}'"):
            pb.attribute(lens, sets, tokens_of(4))
    point = model.hook_dict[hook]
    attach = point.add_hook
    monkeypatch.setattr(point, "add_hook", lambda _hook, *args, **kwargs: attach(_deaf, *args, **kwargs))
    with pytest.raises(ValueError, match=f"never fired in the forward pass: .*{hook}"):
        pb.attribute(lens, sets, tokens_of(4))


def test_transcoders_of_another_model_or_layer_get_no_graph() -> None:
    lens, other = (as_lens(models.build(PLAIN, seed=seed)) for seed in (0, 1))
    sets = models.random_set(other)
    with pytest.raises(ValueError, match="other weights there; pass strict=False"):
        pb.attribute(lens, sets, tokens_of(4))
    assert pb.attribute(lens, sets, tokens_of(4), strict=False).check() <= 1e-9
    with pytest.raises(ValueError, match="layer 2 was trained at layer 0"):
        pb.attribute(lens, TranscoderSet({2: models.random_set(lens)[0]}), tokens_of(4))
    rms = as_lens(models.build("RMS-mha-standard-plain"))
    with pytest.raises(ValueError, match="trained behind a RMS norm"):
        pb.attribute(lens, models.random_set(rms), tokens_of(4), strict=False)
