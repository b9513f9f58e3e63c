"""Replacing MLPs: exactly once, exactly there, and gone afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pullback.lens import as_lens
from pullback.transcoders import TranscoderSet
from tests import models

NAMES = ["LN-gqa-standard-plain", "RMS-mha-rotary-gated", "neox-parallel", "gpt2", "gpt2-folded"]
TOKENS = torch.randint(0, models.VOCAB, (2, 6), generator=torch.Generator().manual_seed(4))


def hooks_on(model: Any) -> int:
    """Hooks of any kind on hook points and modules."""
    points = sum(len(h.fwd_hooks) + len(h.bwd_hooks) for h in model.hook_dict.values())
    modules = [m for root in (model, getattr(model, "original_model", model)) for m in root.modules()]
    return points + sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


def mlp_zeroed_by_torch(model: Any, layer: int) -> Tensor:
    handle = model.blocks[layer].mlp.register_forward_hook(
        lambda _m, _a, out: (torch.zeros_like(out[0]), *out[1:]) if isinstance(out, tuple) else torch.zeros_like(out)
    )
    try:
        return as_lens(model).logits(TOKENS)
    finally:
        handle.remove()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("hook_out", ["hook_mlp_out", "mlp.hook_out"])
def test_identity_changes_nothing_and_zero_is_zero_ablation(name: str, hook_out: str) -> None:
    model = models.build(name)
    lens = as_lens(model)
    before, hooks = lens.logits(TOKENS), hooks_on(model)
    with lens.patch_mlp(dict.fromkeys(range(3), lambda _x, y: y), hook_out=hook_out) as same:
        assert same is lens
        assert torch.equal(lens.logits(TOKENS), before)
    with lens.patch_mlp({1: lambda _x, y: torch.zeros_like(y)}, hook_out=hook_out):
        ablated = lens.logits(TOKENS)
    assert torch.equal(ablated, mlp_zeroed_by_torch(model, 1))
    assert float((ablated - before).abs().max()) > 1e-3
    assert torch.equal(lens.logits(TOKENS), before)
    assert hooks_on(model) == hooks


@pytest.mark.parametrize("name", NAMES)
def test_a_patch_is_applied_exactly_once_and_sees_the_true_input(name: str) -> None:
    model = models.build(name)
    lens = as_lens(model)
    io = lens.mlp_io(TOKENS)
    calls: list[int] = []

    def double(layer: int):  # noqa: ANN202
        def fn(x: Tensor, y: Tensor) -> Tensor:
            calls.append(layer)
            if layer == 0:
                assert torch.equal(x, io[0][0])
                assert torch.equal(y, io[0][1])
            return 2 * y

        return fn

    sites = ["blocks.0.hook_resid_pre", "blocks.0.hook_attn_out", "blocks.0.hook_resid_post"]
    with lens.patch_mlp({i: double(i) for i in range(3)}):
        _, seen = lens.record(TOKENS, sites)
    assert calls == [0, 1, 2]
    pre, attn, post = (seen[s] for s in sites)
    assert torch.allclose(post, pre + attn + 2 * io[0][1], atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_an_exception_inside_leaves_the_model_as_it_was(name: str) -> None:
    model = models.build(name)
    lens = as_lens(model)
    before, hooks = lens.logits(TOKENS), hooks_on(model)

    def fail(_x: Tensor, _y: Tensor) -> Tensor:
        raise RuntimeError("inside the forward pass")

    with pytest.raises(RuntimeError, match="inside the forward pass"), lens.patch_mlp({1: fail}):
        lens.logits(TOKENS)
    with pytest.raises(KeyError), lens.patch_mlp({0: lambda _x, y: 0 * y}):
        raise KeyError("between forward passes")
    with pytest.raises(ValueError, match="no hook"):
        lens.record(
            TOKENS, [], [("blocks.0.hook_mlp_out", torch.zeros_like), ("blocks.9.hook_mlp_out", torch.zeros_like)]
        )
    assert hooks_on(model) == hooks
    assert torch.equal(lens.logits(TOKENS), before)


def test_nested_contexts_apply_inside_out_and_leave_one_by_one() -> None:
    lens = as_lens(models.build("gpt2-folded"))
    plain = lens.logits(TOKENS)

    def times(factor: float):  # noqa: ANN202
        return {0: lambda _x, y: y * factor}

    with lens.patch_mlp(times(6.0)):
        six = lens.logits(TOKENS)
    with lens.patch_mlp(times(2.0)):
        two = lens.logits(TOKENS)
        with lens.patch_mlp(times(3.0)):
            assert torch.allclose(lens.logits(TOKENS), six, atol=1e-12)
        assert torch.equal(lens.logits(TOKENS), two)
        with lens.patch_mlp({2: lambda _x, y: y}):
            assert torch.equal(lens.logits(TOKENS), two)
    assert torch.equal(lens.logits(TOKENS), plain)


def test_a_users_own_hook_survives_and_comes_first() -> None:
    model = models.native(seed=11)
    lens = as_lens(model)
    model.add_hook("blocks.0.hook_mlp_out", lambda t, hook: t + 1)
    with_hook = lens.logits(TOKENS)
    seen: list[Tensor] = []
    with lens.patch_mlp({0: lambda _x, y: seen.append(y) or y}):
        lens.logits(TOKENS)
    unhooked = lens.model.blocks[0].mlp
    assert torch.allclose(seen[0] - 1, unhooked(lens.mlp_io(TOKENS)[0][0]) - 1, atol=1e-9)
    assert torch.equal(lens.logits(TOKENS), with_hook)


@pytest.mark.parametrize("name", NAMES)
def test_replace_puts_transcoders_in(name: str) -> None:
    lens = as_lens(models.build(name))
    sets = models.random_set(lens, skip=True)
    before = lens.logits(TOKENS)
    with lens.patch_mlp({i: (lambda x, _y, i=i: sets[i](x)) for i in range(3)}):
        expected = lens.logits(TOKENS)
    with lens.replace(sets):
        assert torch.equal(lens.logits(TOKENS), expected)
    with lens.replace(sets, layers=[2]):
        some = lens.logits(TOKENS)
    with lens.patch_mlp({2: lambda x, _y: sets[2](x)}):
        assert torch.equal(lens.logits(TOKENS), some)
    with lens.replace(sets, layers=[]):
        assert torch.equal(lens.logits(TOKENS), before)
    assert torch.equal(lens.logits(TOKENS), before)


def test_replace_keeps_the_models_dtype_and_refuses_layers_it_lacks() -> None:
    lens = as_lens(models.build("gpt2"))
    narrow = models.random_set(lens, layers=[0]).to(dtype=torch.float32)
    with lens.replace(narrow):
        assert lens.logits(TOKENS).dtype == torch.float64
    assert narrow[0].dtype == torch.float32
    with pytest.raises(ValueError, match=r"no transcoder for layers \[2\]; it has \[0\]"), lens.replace(narrow, [0, 2]):
        pass
    other = as_lens(models.build("gpt2", seed=1))
    with pytest.raises(ValueError, match="other weights"), other.replace(narrow):
        pass
    assert isinstance(narrow, TranscoderSet)
