"""Lens, attribution and interventions on `HookedTransformer`, where the installed TransformerLens still has it."""

from __future__ import annotations

import importlib.metadata

import pytest
import torch
from torch import Tensor

import pullback as pb
from pullback.lens import as_lens, trace
from pullback.lens.freeze import frozen_run
from tests import models
from tests.hooked import TOKENS, WIRINGS, hooked, lens_of, must_have_hooked_transformer

must_have_hooked_transformer()


@pytest.mark.parametrize("name", WIRINGS)
def test_facts(name: str) -> None:
    lens = lens_of(name)
    assert lens.norm == ("none" if name == "none" else name[:3].rstrip("P") if name.startswith("RMS") else "LN")
    assert lens.folded == ("Pre" in name or name == "none")
    assert lens.parallel == ("parallel" in name)
    assert lens.n_kv_heads == (2 if "gqa" in name else 4)
    assert lens.positional == ("rotary" if "rotary" in name else "learned")
    assert lens.reading(0).tl_version == importlib.metadata.version("transformer_lens")


@pytest.mark.parametrize("name", WIRINGS)
def test_mlp_io_is_what_enters_and_leaves_the_mlp(name: str) -> None:
    """There is no hook behind the norm's affine: the lens reads the module's input itself."""
    lens = lens_of(name)
    io = lens.mlp_io(TOKENS[None])
    assert "blocks.0.mlp.hook_in" not in lens.model.hook_dict
    for i, (x, y) in io.items():
        block = lens.model.blocks[i]
        out = block.mlp(x) if not hasattr(block, "ln2_post") else block.ln2_post(block.mlp(x))
        assert torch.allclose(out, y, atol=1e-12)
        also_x, also_y = lens.mlp_io(TOKENS[None], [i], hook_in="ln2.hook_out", hook_out="mlp.hook_out")[i]
        assert torch.equal(x, also_x)
        assert torch.equal(y, also_y)
    assert not any(b.mlp._forward_pre_hooks for b in lens.model.blocks)


@pytest.mark.parametrize("name", WIRINGS)
def test_patches_act_once_and_go(name: str) -> None:
    lens = lens_of(name)
    plain = lens.logits(TOKENS[None])
    calls: list[int] = []

    def double(_x: Tensor, y: Tensor) -> Tensor:
        calls.append(1)
        return 2 * y

    with lens.patch_mlp({1: double}):
        doubled = lens.logits(TOKENS[None])
    with torch.no_grad():
        expected = lens.model.run_with_hooks(TOKENS[None], fwd_hooks=[("blocks.1.hook_mlp_out", lambda t, hook: 2 * t)])
    assert len(calls) == 1
    assert torch.allclose(doubled, expected, atol=1e-10)
    with pytest.raises(ZeroDivisionError), lens.patch_mlp({1: lambda _x, _y: 1 / 0}):
        lens.logits(TOKENS[None])
    assert torch.equal(lens.logits(TOKENS[None]), plain)
    assert not any(h.fwd_hooks for h in lens.model.hook_dict.values())
    assert not any(b.mlp._forward_pre_hooks for b in lens.model.blocks)


@pytest.mark.parametrize("name", WIRINGS)
@pytest.mark.parametrize("freeze", ["all", "attention", None])
def test_traces_and_freezes_hold(name: str, freeze: str | None) -> None:
    lens = lens_of(name)
    base = trace(lens, TOKENS)
    logits, _ = frozen_run(lens, TOKENS, base, freeze, [], [])
    assert torch.allclose(logits, lens.logits(TOKENS[None])[0], atol=1e-10)
    frozen_run(lens, TOKENS, base, freeze, [("blocks.0.hook_mlp_out", lambda y: y + 1.0)], [])


@pytest.mark.parametrize("name", WIRINGS)
@pytest.mark.parametrize("hook_in", ["mlp.hook_in", "ln2.hook_normalized", "ln2.hook_out", "hook_resid_mid"])
def test_attribution_sums_and_both_engines_agree(name: str, hook_in: str) -> None:
    lens = lens_of(name)
    impossible = (hook_in == "hook_resid_mid" and lens.parallel) or (
        hook_in == "ln2.hook_normalized" and lens.norm == "none"
    )
    if impossible:
        with pytest.raises(ValueError, match="no hook|parallel blocks"):
            pb.attribute(lens, models.random_set(lens, hook_in=hook_in), TOKENS)
        return
    sets = models.random_set(lens, hook_in=hook_in, skip=True)
    linear = pb.attribute(lens, sets, TOKENS, max_n_logits=2)
    oracle = pb.attribute(lens, sets, TOKENS, max_n_logits=2, engine="autograd")
    assert linear.check() <= 1e-9
    assert linear.node_ids() == oracle.node_ids()
    assert linear.n_edges == oracle.n_edges
    assert torch.allclose(linear.weights, oracle.weights, atol=1e-9 * float(oracle.weights.abs().max()))


@pytest.mark.parametrize("name", WIRINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(name: str, dtype: torch.dtype) -> None:
    lens = as_lens(hooked(name, dtype))
    assert trace(lens, TOKENS).logits.dtype == torch.float32


@pytest.mark.parametrize("name", WIRINGS)
def test_interventions(name: str) -> None:
    lens = lens_of(name)
    sets = models.random_set(lens)
    x, _ = lens.mlp_io(TOKENS[None], [1])[1]
    ids, values = sets.encode(1, x[0]).row(3)
    plain = lens.logits(TOKENS[None])[0]
    same = [(1, 3, int(ids[0]), float(values[0]))]
    for freeze in ("all", "attention", None):
        assert torch.allclose(pb.intervene(lens, sets, TOKENS, same, freeze=freeze), plain, atol=1e-9)

    def add(_x: Tensor, y: Tensor) -> Tensor:
        y = y.clone()
        y[:, 3] += 2 * sets[1].W_dec[int(ids[0])]
        return y

    with lens.patch_mlp({1: add}):
        expected = lens.logits(TOKENS[None])[0]
    changed = [(1, 3, int(ids[0]), float(values[0]) + 2)]
    assert torch.allclose(pb.intervene(lens, sets, TOKENS, changed, freeze=None), expected, atol=1e-9)
