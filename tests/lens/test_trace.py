"""A trace is the model's own computation, and a model that computes something else is refused with a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from pullback.lens import as_lens, trace
from pullback.lens.structure import relative_error
from tests import models

TOKENS = torch.randint(0, models.VOCAB, (7,), generator=torch.Generator().manual_seed(5))
WIRINGS = [
    "LN-gqa-standard-plain",
    "RMS-gqa-rotary-gated",
    "RMSPre-mha-standard-plain",
    "neox-parallel",
    "llama",
    "gpt2-folded",
]


@pytest.fixture
def model() -> Iterator[Any]:
    """GPT-2 shared by the tests below, as it was after each of them."""
    shared = models.build("gpt2")
    yield shared
    shared.reset_hooks(including_permanent=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", WIRINGS)
def test_every_wiring_in_every_dtype(name: str, dtype: torch.dtype) -> None:
    lens = as_lens(models.build(name, dtype))
    t = trace(lens, TOKENS)
    assert t.logits.dtype == t.layers[0].weights.W_V.dtype == lens.compute_dtype
    assert lens.compute_dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    off = relative_error(t.logits, lens.logits(TOKENS[None])[0].to(t.logits.dtype))
    assert off <= {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]


def test_what_is_recorded_is_what_the_model_reads() -> None:
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    t = trace(lens, TOKENS)
    assert t.pos_embed is not None
    assert torch.equal(t.tokens, TOKENS)
    for i, layer in enumerate(t.layers):
        for hook_in in ("mlp.hook_in", "ln2.hook_normalized", "hook_resid_mid"):
            x, y = lens.mlp_io(TOKENS[None], [i], hook_in=hook_in)[i]
            assert torch.allclose(layer.read(hook_in), x[0], atol=1e-12)
            assert torch.equal(layer.mlp_out, y[0])


def test_tokens_are_checked() -> None:
    lens = as_lens(models.build("gpt2"))
    with pytest.raises(ValueError, match="at most 12"):
        trace(lens, torch.zeros(13, dtype=torch.long))
    with pytest.raises(ValueError, match=r"one row of token ids \(T,\)"):
        trace(lens, torch.zeros(2, 3, dtype=torch.long))


def test_attention_that_cancels_to_rounding_noise_is_no_error() -> None:
    """Two heads that undo each other write 1e-17, of which no digit is right."""
    model = models.native(seed=12)
    with torch.no_grad():
        attn = model.blocks[0].attn
        half = models.D_MODEL // 2
        for part in (attn.q, attn.k, attn.v):
            for p in part.parameters():
                p[half:] = p[:half]
        weight = next(p for p in attn.o.parameters() if p.ndim == 2)
        weight[:, half:] = -weight[:, :half] * (1 + 1e-15)
        for p in attn.o.parameters():
            if p.ndim == 1:
                p.zero_()
    t = trace(as_lens(model), TOKENS)
    assert 0 < float(t.layers[0].attn_out.abs().max()) < 1e-12


# ---- tampered models -------------------------------------------------------------------------------------------


def scaled(factor: float) -> Callable[..., Any]:
    def hook(_module: Any, _args: Any, out: Any) -> Any:
        return (out[0] * factor, *out[1:]) if isinstance(out, tuple) else out * factor

    return hook


@pytest.mark.parametrize(
    ("part", "what"),
    [
        ("blocks.0.ln1", "the outputs of attention 0"),
        ("blocks.1.attn.o", "the outputs of attention 1"),
        ("blocks.1.attn.v", "the outputs of attention 1"),
        ("blocks.1.mlp", "the activations leaving block 1"),
        ("blocks.1", "the activations entering block 2"),
        ("blocks.2", "the logits"),
        ("ln_final", "the logits"),
        ("unembed", "the logits"),
    ],
)
def test_a_module_that_does_more_than_its_weights_is_found(model: Any, part: str, what: str) -> None:
    lens = as_lens(model)
    assert lens.parallel is False
    handle = model.get_submodule(part).register_forward_hook(scaled(1.01))
    try:
        with pytest.raises(
            ValueError, match=f"is not linear here .*: {what} differ from the model's by .*not supported yet"
        ):
            trace(lens, TOKENS)
    finally:
        handle.remove()
    trace(lens, TOKENS)


def test_a_write_to_the_alias_that_the_stream_does_not_see_is_found(model: Any) -> None:
    """hook_resid_mid is an alias of ln2's input: writing there changes what the MLP reads and not the stream."""
    model.add_hook("blocks.1.hook_resid_mid", lambda t, hook: t * 2 + 1)
    with pytest.raises(ValueError, match="the inputs of MLP 1 differ"):
        trace(as_lens(model), TOKENS)


def test_a_users_edit_of_an_mlp_output_is_part_of_the_model(model: Any) -> None:
    model.add_hook("blocks.1.hook_mlp_out", lambda t, hook: torch.zeros_like(t))
    assert not bool(trace(as_lens(model), TOKENS).layers[1].mlp_out.any())


def test_an_edited_pattern_is_the_pattern(model: Any) -> None:
    lens = as_lens(model)
    before = trace(lens, TOKENS)
    model.add_hook("blocks.0.attn.hook_pattern", lambda t, hook: t / 2)
    assert torch.allclose(trace(lens, TOKENS).layers[0].pattern, before.layers[0].pattern / 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_subnormal_numbers_are_no_part_of_a_pattern(dtype: torch.dtype) -> None:
    model, tiny = models.build("gpt2", dtype), torch.finfo(dtype).tiny

    def sharpen(pattern: torch.Tensor, hook: Any) -> torch.Tensor:  # noqa: ARG001
        pattern[..., 1:, 0] = tiny / 3
        pattern[..., 2:, 1] = 3 * tiny
        return pattern

    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", sharpen)]):
        pattern = trace(as_lens(model), TOKENS).layers[1].pattern
    assert bool((pattern[:, 1:, 0] == 0).all())
    assert bool((pattern[:, 2:, 1] == 3 * tiny).all())


def test_nan_is_named(model: Any) -> None:
    model.add_hook("blocks.1.hook_mlp_out", lambda t, hook: t * torch.nan)
    with pytest.raises(ValueError, match=r"at blocks\.1\.hook_mlp_out are NaN or infinite; .*float64 overflows"):
        trace(as_lens(model), TOKENS)


def test_dropout_does_not_reach_a_trace() -> None:
    model = models.gpt2(seed=4).train()
    a, b = (trace(as_lens(model), TOKENS) for _ in range(2))
    assert torch.equal(a.logits, b.logits)
    assert model.training
