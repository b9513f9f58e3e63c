"""What `Lens` says of a model is what the model does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from pullback.lens import Lens, as_lens
from pullback.lens.fingerprint import fingerprint, same_weight
from pullback.lens.structure import measure_parallel
from tests import models

FACTS = {
    "LN-mha-standard-plain": ("LN", False, False, 4, "learned", False),
    "LN-gqa-rotary-gated": ("LN", False, False, 2, "rotary", True),
    "LNPre-gqa-standard-plain": ("LN", True, False, 2, "learned", False),
    "RMS-mha-standard-gated": ("RMS", False, False, 4, "learned", True),
    "RMSPre-gqa-rotary-plain": ("RMS", True, False, 2, "rotary", False),
    "neox-parallel": ("LN", False, True, 4, "rotary", False),
    "llama": ("RMS", False, False, 2, "rotary", True),
    "gpt2": ("LN", False, False, 4, "learned", False),
    "gpt2-folded": ("LN", True, False, 4, "learned", False),
}


def batch(n: int = 2, T: int = 6, seed: int = 3) -> Tensor:
    return torch.randint(0, models.VOCAB, (n, T), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", FACTS)
def test_facts(name: str) -> None:
    lens = as_lens(models.build(name))
    facts = (lens.norm, lens.folded, lens.parallel, lens.n_kv_heads, lens.positional, lens.gated)
    assert facts == FACTS[name]
    assert (lens.n_layers, lens.d_model, lens.d_vocab, lens.n_heads, lens.d_head) == (
        3,
        models.D_MODEL,
        models.VOCAB,
        4,
        4,
    )
    assert lens.rotary == (lens.positional == "rotary")
    assert lens.dtype == lens.compute_dtype == torch.float64


def test_a_reading_records_the_facts_and_tells_layers_apart() -> None:
    lens = as_lens(models.build("llama"))
    reading = lens.reading(1)
    assert (reading.norm, reading.folded, reading.parallel, reading.layer) == ("RMS", False, False, 1)
    assert reading.tl_version[0] in "345", "the version comes from the installed package"
    assert len({lens.fingerprint(i) for i in range(3)}) == 3


def test_a_fingerprint_survives_a_change_of_dtype() -> None:
    model = models.native(seed=9)
    before = Lens(model).fingerprint(0)
    for dtype in (torch.float32, torch.bfloat16):
        assert same_weight(before, Lens(model.to(dtype)).fingerprint(0))


def test_a_fingerprint_tells_weights_apart() -> None:
    weights = [torch.randn(300, 700, generator=torch.Generator().manual_seed(n)) for n in range(8)]
    prints = [fingerprint(w) for w in weights]
    assert [[same_weight(a, b) for b in prints] for a in prints] == torch.eye(8, dtype=torch.bool).tolist()
    assert not same_weight(fingerprint(weights[0] * 1.05), prints[0]), "scaled"
    assert not same_weight(fingerprint(weights[0].flip(0)), prints[0]), "rows in another order"
    assert not same_weight("0" * 64, prints[0]), "no fingerprint at all"
    assert same_weight(fingerprint(weights[0].bfloat16()), prints[0])
    nudged = weights[0] * (1 + 1e-3 * torch.randn(300, 700))
    assert same_weight(fingerprint(nudged), prints[0]), "what folding in another precision does, and more"


def test_a_folded_model_is_the_same_in_any_precision() -> None:
    sets = models.random_set(as_lens(models.gpt2(dtype=torch.float32, folded=True)))
    as_lens(models.gpt2(dtype=torch.bfloat16, folded=True)).check(sets)


def test_a_flag_that_lies_is_not_believed() -> None:
    model = models.native(parallel_attn_mlp=True)
    assert model.cfg.parallel_attn_mlp
    assert as_lens(model).parallel is False


@pytest.mark.parametrize("silent", [[0], [0, 1, 2]])
def test_attention_that_writes_nothing_does_not_make_a_block_parallel(silent: list[int]) -> None:
    model = models.native(seed=5)
    with torch.no_grad():
        for i in silent:
            for p in model.blocks[i].attn.o.parameters():
                p.zero_()
    assert measure_parallel(as_lens(model)) is False


@pytest.mark.parametrize("where", ["blocks.1.mlp", "embed"])
def test_nan_weights_are_named(where: str) -> None:
    model = models.native(seed=6)
    with torch.no_grad():
        next(model.get_submodule(where).parameters())[:] = torch.nan
    with pytest.raises(ValueError, match=r"activations of native at .* are NaN or infinite"):
        _ = as_lens(model).parallel


def test_something_else_is_no_model() -> None:
    with pytest.raises(ValueError, match="Linear is no TransformerLens model.*boot_native"):
        as_lens(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="NoneType is no TransformerLens model"):
        as_lens(None)


@pytest.mark.filterwarnings("ignore:TransformerBridgeConfig is already bound")
def test_one_lens_a_model_and_copies_get_their_own() -> None:
    model = models.native(seed=7)
    lens = as_lens(model)
    assert as_lens(model) is lens
    assert as_lens(lens) is lens
    for other in (copy.deepcopy(model), copy.copy(model)):
        assert as_lens(other).model is other
    assert as_lens(model) is lens
    assert model.to(torch.float32) is model
    assert as_lens(model).dtype == torch.float32


# ---- mlp_io ---------------------------------------------------------------------------------------------------


def around_the_mlp(model: Any, layer: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """What enters and leaves the module, by a plain torch hook."""
    seen: dict[str, Tensor] = {}

    def hook(_module: Any, args: Any, kwargs: Any, output: Any) -> None:
        seen["x"] = args[0] if args else next(iter(kwargs.values()))
        seen["y"] = output[0] if isinstance(output, tuple) else output

    handle = model.blocks[layer].mlp.register_forward_hook(hook, with_kwargs=True)
    try:
        as_lens(model).logits(tokens)
    finally:
        handle.remove()
    return seen["x"], seen["y"]


@pytest.mark.parametrize("name", FACTS)
def test_mlp_io_is_what_enters_and_leaves_the_mlp(name: str) -> None:
    model = models.build(name)
    io = as_lens(model).mlp_io(batch())
    assert list(io) == [0, 1, 2]
    for layer, (x, y) in io.items():
        entered, left = around_the_mlp(model, layer, batch())
        assert torch.equal(x, entered)
        assert torch.equal(y, left)
        assert not x.requires_grad
        assert not y.requires_grad


@pytest.mark.parametrize("name", FACTS)
def test_mlp_io_ends_the_pass_at_its_last_layer_and_leaves_the_model_as_it_was(name: str) -> None:
    lens = as_lens(models.build(name))
    before = lens.logits(batch())
    ran = []
    handles = [
        module.register_forward_hook(lambda *_, i=i: ran.append(i))
        for i, module in enumerate([*(block.attn for block in lens.model.blocks), lens.model.unembed])
    ]
    try:
        lens.mlp_io(batch(), [1])
    finally:
        for handle in handles:
            handle.remove()
    assert ran == [0, 1]
    assert torch.equal(lens.logits(batch()), before)


def test_float64_rms_is_exact() -> None:
    """A native float64 RMSNorm rounds through float32 by itself; the lens does not let it."""
    lens = as_lens(models.build("RMS-mha-standard-plain"))
    sites = ["blocks.1.hook_resid_mid", "blocks.1.mlp.hook_in"]
    _, seen = lens.record(batch(), sites)
    x = seen[sites[0]]
    scale = (x.pow(2).mean(-1, keepdim=True) + lens.model.cfg.eps).sqrt()
    weight = lens.layer_weights(1).ln2.w
    assert weight is not None
    assert float((x / scale * weight - seen[sites[1]]).abs().max()) < 1e-13


@pytest.mark.parametrize("name", FACTS)
def test_sites_before_and_after_the_affine(name: str) -> None:
    lens = as_lens(models.build(name))
    after, _ = lens.mlp_io(batch(), [1])[1]
    before, _ = lens.mlp_io(batch(), [1], hook_in="ln2.hook_normalized")[1]
    also_after, _ = lens.mlp_io(batch(), [1], hook_in="ln2.hook_out", hook_out="mlp.hook_out")[1]
    assert torch.equal(after, also_after)
    assert torch.allclose(lens.layer_weights(1).ln2.affine(before), after, atol=1e-12)
    assert torch.allclose(before, after, atol=1e-12) == lens.folded


def test_padding_on_the_right_changes_no_token_before_it() -> None:
    lens = as_lens(models.build("gpt2"))
    tokens = batch(1, 8)
    padded = tokens.clone()
    padded[0, 5:] = lens.model.tokenizer.pad_token_id
    short, long = lens.mlp_io(tokens[:, :5]), lens.mlp_io(padded)
    for layer in range(3):
        for a, b in zip(short[layer], long[layer], strict=True):
            assert torch.allclose(a, b[:, :5], atol=1e-12)


def test_mlp_io_layers_and_hooks_are_checked() -> None:
    lens = as_lens(models.build("neox-parallel"))
    assert list(lens.mlp_io(batch(), [2])) == [2]
    with pytest.raises(ValueError, match=r"no layers \[3, -1\] in a model of 3 layers"):
        lens.mlp_io(batch(), [3, 0, -1])
    with pytest.raises(ValueError, match="hook_in must be one of .*got 'mlp.hook_pre'"):
        lens.mlp_io(batch(), hook_in="mlp.hook_pre")
    with pytest.raises(ValueError, match="hook_out must be one of .*got 'hook_resid_post'"):
        lens.mlp_io(batch(), hook_out="hook_resid_post")
    with pytest.raises(ValueError, match="parallel blocks and so no hook_resid_mid; use mlp.hook_in"):
        lens.mlp_io(batch(), hook_in="hook_resid_mid")
    with pytest.raises(ValueError, match=r"no hook 'blocks.0.nothing'; it has .*blocks.0.hook_mlp_out"):
        lens.record(batch(), ["blocks.0.nothing"])


# ---- the model stays as it was --------------------------------------------------------------------------------


def test_dropout_is_off_inside_and_every_module_keeps_its_mode() -> None:
    model = models.gpt2(seed=2)
    lens = as_lens(model)
    expected = lens.logits(batch())
    model.train()
    model.blocks[1].eval()
    modes = [m.training for root in (model, model.original_model) for m in root.modules()]
    assert True in modes
    assert torch.equal(lens.logits(batch()), expected), "GPT-2 drops a tenth of its activations in training mode"
    assert [m.training for root in (model, model.original_model) for m in root.modules()] == modes

    def stumble(_t: Tensor) -> None:
        raise RuntimeError("stumbled")

    with pytest.raises(RuntimeError, match="stumbled"):
        lens.record(batch(), [], [("hook_embed", stumble)])
    assert [m.training for root in (model, model.original_model) for m in root.modules()] == modes


def test_tokens_that_cannot_be_read_get_a_sentence() -> None:
    lens = as_lens(models.native(seed=8))
    with pytest.raises(ValueError, match=r"token id .* is outside the vocabulary 0\.\.49"):
        lens.mlp_io(batch() + models.VOCAB)
    with pytest.raises(ValueError, match="reads at most 12"):
        lens.logits(torch.zeros(1, 13, dtype=torch.long))


def test_no_gradient_is_kept() -> None:
    model = models.native(seed=8)
    lens = as_lens(model)
    with torch.enable_grad():
        assert not lens.logits(batch()).requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())
