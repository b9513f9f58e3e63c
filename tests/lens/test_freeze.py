"""A freeze holds under perturbation, and one that does not hold is found out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pullback.lens import as_lens, trace
from pullback.lens import record as rec
from pullback.lens.freeze import freeze_edits, frozen_run
from tests import models

TOKENS = torch.randint(0, models.VOCAB, (6,), generator=torch.Generator().manual_seed(6))
WIRINGS = [
    "LN-gqa-standard-plain",
    "RMS-gqa-rotary-gated",
    "LNPre-mha-rotary-plain",
    "neox-parallel",
    "llama",
    "gpt2-folded",
]
SITES = ["attn.hook_pattern", "ln1.hook_scale", "ln2.hook_scale", "hook_mlp_out", "hook_resid_post"]


def push(scale: float = 1.0) -> list[tuple[str, rec.Edit]]:
    """A large change of what MLP 0 writes."""
    change = torch.randn(models.D_MODEL, generator=torch.Generator().manual_seed(7), dtype=torch.float64) * scale
    return [("blocks.0.hook_mlp_out", lambda y: y + change.to(y.dtype))]


def run(lens: Any, freeze: str | None, edits: list[tuple[str, rec.Edit]]) -> tuple[Tensor, dict[str, Tensor]]:
    sites = [f"blocks.{i}.{s}" for i in range(3) for s in SITES] + ["ln_final.hook_scale"]
    return frozen_run(lens, TOKENS, trace(lens, TOKENS), freeze, edits, sites)


@pytest.mark.parametrize("name", WIRINGS)
@pytest.mark.parametrize("freeze", ["all", "attention", None])
def test_nothing_perturbed_nothing_changed(name: str, freeze: str | None) -> None:
    lens = as_lens(models.build(name))
    logits, _ = run(lens, freeze, [])
    assert torch.allclose(logits, lens.logits(TOKENS[None])[0], atol=1e-10)


@pytest.mark.parametrize("name", WIRINGS)
def test_each_freeze_holds_what_it_names_and_nothing_else(name: str) -> None:
    lens = as_lens(models.build(name))
    base = {freeze: run(lens, freeze, [])[1] for freeze in ("all", "attention", None)}
    pushed = {freeze: run(lens, freeze, push())[1] for freeze in ("all", "attention", None)}

    def moved(freeze: str | None, site: str) -> float:
        return float((pushed[freeze][site] - base[freeze][site]).abs().max())

    def same(freeze: str | None, site: str) -> bool:
        return moved(freeze, site) < 1e-12

    for freeze in pushed:
        assert moved(freeze, "blocks.2.hook_resid_post") > 1e-2
    for site in ("blocks.1.attn.hook_pattern", "blocks.2.attn.hook_pattern"):
        assert same("all", site)
        assert same("attention", site)
        assert not same(None, site)
    for site in ("blocks.1.ln1.hook_scale", "blocks.2.ln2.hook_scale", "ln_final.hook_scale", "blocks.2.hook_mlp_out"):
        assert same("all", site)
        assert not same("attention", site)
        assert not same(None, site)


@pytest.mark.parametrize("name", WIRINGS)
def test_all_frozen_is_linear(name: str) -> None:
    lens = as_lens(models.build(name))
    base, once, thrice = (run(lens, "all", push(s))[0] for s in (0.0, 1.0, 3.0))
    assert torch.allclose(3 * (once - base), thrice - base, atol=1e-9)
    assert float((once - base).abs().max()) > 1e-2


@pytest.mark.parametrize("name", WIRINGS)
def test_what_attention_writes_may_be_edited_and_is_read_before(name: str) -> None:
    lens = as_lens(models.build(name))
    base, site = trace(lens, TOKENS), "blocks.1.hook_attn_out"
    for freeze in ("all", "attention", None):
        logits, seen = frozen_run(lens, TOKENS, base, freeze, [(site, torch.zeros_like)], [site])
        assert torch.allclose(seen[site], base.layers[1].attn_out, atol=1e-10)
        assert float((logits - base.logits).abs().max()) > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("freeze", ["all", "attention", None])
def test_freezes_hold_in_lower_precision(dtype: torch.dtype, freeze: str | None) -> None:
    lens = as_lens(models.build("gpt2-folded", dtype))
    assert bool(torch.isfinite(run(lens, freeze, push())[0]).all())


def without(kept: str):  # noqa: ANN202
    """Freezing edits of which those at one kind of site never reach the model: a hook that does not act."""

    def edits(base: Any, freeze: str | None) -> list[tuple[str, rec.Edit]]:
        return [(site, edit) for site, edit in freeze_edits(base, freeze) if kept not in site]

    return edits


@pytest.mark.parametrize(
    ("freeze", "kept", "what"),
    [
        ("attention", "hook_pattern", "the attention pattern of layer 1"),
        ("all", "hook_pattern", "the attention pattern of layer 1"),
        ("all", "ln1.hook_scale", "ln1's scale of layer 1"),
        ("all", "ln2.hook_scale", "ln2's scale of layer [01]"),
        ("all", "ln_final.hook_scale", "ln_final's scale"),
    ],
)
@pytest.mark.parametrize("name", ["LN-gqa-standard-plain", "neox-parallel"])
def test_a_freeze_that_is_not_kept_is_found(
    monkeypatch: pytest.MonkeyPatch, name: str, freeze: str, kept: str, what: str
) -> None:
    lens = as_lens(models.build(name))
    run(lens, freeze, push())
    monkeypatch.setattr("pullback.lens.freeze.freeze_edits", without(kept))
    with pytest.raises(ValueError, match=f"{what} did not stay frozen .*this freeze cannot be had"):
        run(lens, freeze, push())


@pytest.mark.parametrize("freeze", ["all", "attention", None])
def test_a_write_that_the_stream_does_not_see_is_found(freeze: str | None) -> None:
    model = models.native(seed=13)
    lens = as_lens(model)
    base = trace(lens, TOKENS)
    # The MLP's output is overwritten behind its hook point, so edits there are lost.
    stale = base.layers[0].mlp_out[None]
    handle = model.blocks[0].mlp.register_forward_hook(lambda _m, _a, _out: stale)
    try:
        with pytest.raises(ValueError, match="what was written to the MLP output of layer 0"):
            frozen_run(lens, TOKENS, base, freeze, push(), [])
    finally:
        handle.remove()


def test_an_unknown_freeze() -> None:
    lens = as_lens(models.build("gpt2"))
    with pytest.raises(ValueError, match="freeze must be 'all', 'attention' or None, got 'norms'"):
        run(lens, "norms", [])
