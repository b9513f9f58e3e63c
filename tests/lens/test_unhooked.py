"""A pass without hooks gives what the hooks give, or is not used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pullback.lens import Lens, as_lens
from pullback.lens.unhooked import Unhooked
from tests import models

# In float64 transformers' Llama takes its softmax in float32: that is seen, and the model is run as it is.
EXACT = [name for name in models.ALL if name != "llama"]
PAIRS = [
    ("mlp.hook_in", "hook_mlp_out"),
    ("ln2.hook_out", "mlp.hook_out"),
    ("ln2.hook_normalized", "hook_mlp_out"),
    ("hook_mlp_out", "hook_mlp_out"),
    ("hook_attn_out", "hook_attn_out"),
]


def tokens(n: int = 3, T: int = 9) -> torch.Tensor:
    return torch.randint(models.VOCAB, (n, T), generator=torch.Generator().manual_seed(n + T))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of all tokens that go through a model itself."""
    seen: list[torch.Size] = []
    hooked: Callable[..., Any] = Lens.mlp_io

    def mlp_io(self: Lens, ids: torch.Tensor, *args: Any) -> Any:
        seen.append(ids.shape)
        return hooked(self, ids, *args)

    monkeypatch.setattr(Lens, "mlp_io", mlp_io)
    return seen


def must_agree(lens: Lens, unhooked: Unhooked, ids: torch.Tensor, *hooks: str, atol: float = 1e-9) -> None:
    layers = list(range(lens.n_layers))
    expected, found = lens.mlp_io(ids, layers, *hooks), unhooked.mlp_io(ids, layers, *hooks)
    assert list(found) == layers
    for layer in layers:
        for ours, theirs in zip(found[layer], expected[layer], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def must_be_plain(unhooked: Unhooked, passes: list[torch.Size], *hooks: str) -> None:
    """A pass that differs from the model's is not used, and so gives what the model does, too."""
    passes.clear()
    unhooked.mlp_io(tokens(), [0], *hooks)
    assert not passes


@pytest.mark.parametrize("name", EXACT)
def test_every_wiring_is_passed_plainly(name: str, passes: list[torch.Size]) -> None:
    lens = as_lens(models.build(name))
    unhooked = lens.unhooked()
    unhooked.mlp_io(tokens(), [0])
    passes.clear()
    must_agree(lens, unhooked, tokens(4, 7))
    assert passes == [(4, 7)], "the model itself was run for the comparison only"


@pytest.mark.parametrize("hooks", PAIRS)
@pytest.mark.parametrize("name", ["LN-gqa-rotary-gated", "neox-parallel"])
def test_every_site(name: str, hooks: tuple[str, str], passes: list[torch.Size]) -> None:
    lens = as_lens(models.build(name))
    unhooked = lens.unhooked()
    must_agree(lens, unhooked, tokens(), *hooks)
    must_be_plain(unhooked, passes, *hooks)


def test_the_stream_between_attention_and_mlp(passes: list[torch.Size]) -> None:
    lens = as_lens(models.build("gpt2"))
    unhooked, hooks = lens.unhooked(), ("hook_resid_mid", "hook_mlp_out")
    must_agree(lens, unhooked, tokens(), *hooks)
    must_be_plain(unhooked, passes, *hooks)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precisions(name: str, dtype: torch.dtype, passes: list[torch.Size]) -> None:
    lens = as_lens(models.build(name, dtype))
    unhooked = lens.unhooked()
    must_agree(lens, unhooked, tokens(), atol=1e-4 if dtype == torch.float32 else 0.3)
    passes.clear()
    found = unhooked.mlp_io(tokens(), [1])
    assert not passes
    assert found[1][0].dtype == dtype


def test_layers_above_the_last_asked_for_are_not_run() -> None:
    lens = as_lens(models.native(0))
    unhooked = lens.unhooked()
    unhooked.mlp_io(tokens(), [0])
    with torch.no_grad():
        lens.model.blocks[1].attn.W_Q.fill_(torch.nan)
    assert bool(unhooked.mlp_io(tokens(), [0])[0][0].isfinite().all())
    assert bool(unhooked.mlp_io(tokens(), [1])[1][0].isnan().all()), "weights are read where they stand"


def test_a_greater_length_is_compared_again(passes: list[torch.Size]) -> None:
    unhooked = as_lens(models.build("LN-mha-rotary-plain")).unhooked()
    for T in (5, 5, 3, 9, 9):
        unhooked.mlp_io(tokens(2, T), [0])
    assert passes == [(1, 5), (1, 9)]


def test_a_model_of_another_kind_is_run_as_it_is(passes: list[torch.Size]) -> None:
    lens = as_lens(models.native(0, attn_scores_soft_cap=0.5))
    unhooked = lens.unhooked()
    must_agree(lens, unhooked, tokens(), atol=0)
    passes.clear()
    unhooked.mlp_io(tokens(), [0])
    assert passes == [(3, 9)]


def test_hooks_that_are_attached_fire() -> None:
    lens = as_lens(models.native(0))
    unhooked = lens.unhooked()
    plain = unhooked.mlp_io(tokens(), [1])[1][1]
    with lens.patch_mlp({0: lambda _x, y: 0 * y}):
        patched = unhooked.mlp_io(tokens(), [1])[1][1]
        expected = lens.mlp_io(tokens(), [1])[1][1]
    assert torch.equal(patched, expected)
    assert not torch.allclose(patched, plain)
    torch.testing.assert_close(unhooked.mlp_io(tokens(), [1])[1][1], plain, rtol=0, atol=0)


def test_tokens_are_checked() -> None:
    unhooked = as_lens(models.build("gpt2")).unhooked()
    unhooked.mlp_io(tokens(), [0])
    with pytest.raises(ValueError, match="vocabulary"):
        unhooked.mlp_io(tokens() + models.VOCAB, [0])
