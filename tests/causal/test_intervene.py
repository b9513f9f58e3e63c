"""Interventions do what their sentence says: (value - z) W_dec at the output hook, the error kept, the rest run on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pullback as pb
from pullback.causal import run_interventions
from pullback.lens import as_lens
from tests import models
from tests.causal.exact import own_mlps, prompts, relu_model

TOKENS = prompts(1, 6, seed=1)[0]
WIRINGS = ["LN-gqa-standard-plain", "RMS-gqa-rotary-gated", "neox-parallel", "gpt2-folded"]
FREEZES = ["attention", "all", None]


def active(lens: Any, sets: Any, layer: int, pos: int) -> tuple[int, float]:
    """One active feature at a place and its z."""
    x, _ = lens.mlp_io(TOKENS[None], [layer], hook_in=sets.hook_in(layer))[layer]
    ids, values = sets.encode(layer, x[0]).row(pos)
    return int(ids[-1]), float(values[-1])


def patched(lens: Any, layer: int, pos: int, change: Tensor) -> Tensor:
    def add(_x: Tensor, y: Tensor) -> Tensor:
        y = y.clone()
        y[:, pos] += change
        return y

    with lens.patch_mlp({layer: add}):
        return lens.logits(TOKENS[None])[0]


@pytest.mark.parametrize("name", WIRINGS)
@pytest.mark.parametrize("freeze", FREEZES)
def test_the_present_value_changes_nothing(name: str, freeze: str | None) -> None:
    """Random transcoders explain little: were the error not kept, the logits would move."""
    lens = as_lens(models.build(name))
    sets = models.random_set(lens, skip=True)
    f, z = active(lens, sets, 1, 3)
    inactive = next(i for i in range(40) if i not in sets.encode(1, lens.mlp_io(TOKENS[None], [1])[1][0][0]).row(3)[0])
    plain = lens.logits(TOKENS[None])[0]
    for wanted in ([], [(1, 3, f, z)], [(1, 3, f, z), (1, 3, inactive, 0.0), (2, 0, *active(lens, sets, 2, 0))]):
        assert torch.allclose(pb.intervene(lens, sets, TOKENS, wanted, freeze=freeze), plain, atol=1e-9)


@pytest.mark.parametrize("name", WIRINGS)
@pytest.mark.parametrize("hook_in", ["mlp.hook_in", "ln2.hook_normalized"])
def test_a_new_value_is_a_patch_of_the_output(name: str, hook_in: str) -> None:
    lens = as_lens(models.build(name))
    sets = models.random_set(lens, hook_in=hook_in)
    f, z = active(lens, sets, 1, 3)
    ours = pb.intervene(lens, sets, TOKENS, [(1, 3, f, z + 2.5)], freeze=None)
    assert torch.allclose(ours, patched(lens, 1, 3, 2.5 * sets[1].W_dec[f]), atol=1e-9)
    ablated = pb.intervene(lens, sets, TOKENS, [(1, 3, f, 0.0)], freeze=None)
    assert torch.allclose(ablated, patched(lens, 1, 3, -z * sets[1].W_dec[f]), atol=1e-9)
    assert torch.allclose(ours[:3], lens.logits(TOKENS[None])[0, :3], atol=1e-12), "nothing before the position moves"
    assert float((ours[3:] - ablated[3:]).abs().max()) > 1e-3


def test_an_inactive_feature_can_be_switched_on() -> None:
    lens = relu_model()
    sets = own_mlps(lens)
    x, _ = lens.mlp_io(TOKENS[None], [0])[0]
    h = x[0, 2] @ sets[0].W_enc.T + sets[0].b_enc
    off = int(h.argmin())
    assert h[off] < 0
    ours = pb.intervene(lens, sets, TOKENS, [(0, 2, off, 1.5)], freeze=None)
    assert torch.allclose(ours, patched(lens, 0, 2, 1.5 * sets[0].W_dec[off]), atol=1e-9)


def test_later_layers_are_set_to_the_value_whatever_earlier_ones_did() -> None:
    """z is taken in the run itself: with all of layer 1 given at a position, layer 0 no longer shows in it there."""
    lens = relu_model()
    sets = own_mlps(lens)
    everything = [(1, 4, f, 0.0) for f in range(sets[1].d_sae)]
    first = (0, 4, active(lens, sets, 0, 4)[0], 9.0)

    def mlp_1(wanted: list[Any]) -> Tensor:
        seen = run_interventions(lens, sets, TOKENS, wanted, freeze=None)
        acts = sets.encode(1, seen.inputs[1])
        return acts.row(4)[1]

    assert not torch.equal(mlp_1([]), mlp_1([first])), "layer 1 reads the change"
    b_out = sets[1].b_dec

    def silence(_x: Tensor, y: Tensor) -> Tensor:
        y = y.clone()
        y[:, 4] = b_out
        return y

    def raise_first(x: Tensor, y: Tensor) -> Tensor:
        z = torch.relu(x[0, 4] @ sets[0].W_enc[first[2]] + sets[0].b_enc[first[2]])
        y = y.clone()
        y[:, 4] += (9.0 - z) * sets[0].W_dec[first[2]]
        return y

    with lens.patch_mlp({0: raise_first, 1: silence}):
        expected = lens.logits(TOKENS[None])[0]
    assert torch.allclose(pb.intervene(lens, sets, TOKENS, [first, *everything], freeze=None), expected, atol=1e-9)


@pytest.mark.parametrize("name", WIRINGS)
def test_freezes_differ_as_they_should(name: str) -> None:
    lens = as_lens(models.build(name))
    sets = models.random_set(lens)
    plain = lens.logits(TOKENS[None])[0]

    def effect(freeze: str | None, factor: float) -> Tensor:
        f, z = active(lens, sets, 0, 2)
        return pb.intervene(lens, sets, TOKENS, [(0, 2, f, z + factor)], freeze=freeze) - plain

    assert torch.allclose(effect("all", 6.0), 3 * effect("all", 2.0), atol=1e-9), "direct effects are linear"
    assert not torch.allclose(effect("attention", 6.0), 3 * effect("attention", 2.0), atol=1e-4)
    assert not torch.allclose(effect("attention", 6.0), effect(None, 6.0), atol=1e-4)


def test_negative_positions_and_numbers_of_any_kind() -> None:
    lens = as_lens(models.build("gpt2"))
    sets = models.random_set(lens)
    expected = pb.intervene(lens, sets, TOKENS, [(1, 5, 3, 2.0)])
    for place in (
        (1, -1, 3, 2),
        (np.int64(1), np.int32(-1), np.int64(3), np.float32(2)),
        tuple(torch.tensor([1, 5, 3, 2])),
    ):
        assert torch.equal(pb.intervene(lens, sets, TOKENS, [place]), expected)


@pytest.mark.parametrize("freeze", FREEZES)
@pytest.mark.parametrize("name", WIRINGS)
def test_features_of_attention_are_set_like_others(name: str, freeze: str | None) -> None:
    """Against hooks by hand: (value - z) W_dec at what attention writes; held layers write there what they wrote."""
    lens = as_lens(models.build(name))
    sets, saes = models.random_set(lens), models.random_saes(lens, layers=[0, 1])
    held = [f"blocks.{i}.{s}" for i in range(3) for s in ("attn.hook_pattern", "ln1.hook_scale", "ln2.hook_scale")]
    held += [f"blocks.{i}.{s}" for i in range(3) for s in ("hook_attn_out", "hook_mlp_out")]
    _, base = lens.record(TOKENS[None], [*held, "ln_final.hook_scale"])
    ids, values = saes.encode(1, base["blocks.1.hook_attn_out"][0]).row(3)
    f, z = int(ids[-1]), float(values[-1])
    mlp = (0, 2, *active(lens, sets, 0, 2))
    given: Any = {"freeze": freeze, "attention_saes": saes}
    one = pb.FeatureTarget(1, 3, f, attention=True)
    plain = lens.logits(TOKENS[None])[0]
    for nothing in ([(one, z)], [(one, z), mlp], []):
        assert torch.allclose(pb.intervene(lens, sets, TOKENS, nothing, **given), plain, atol=1e-9)
    seen = run_interventions(lens, sets, TOKENS, [(one, z + 2.5)], **given)

    def more(y: Tensor) -> Tensor:
        return y.index_add(1, torch.tensor([3]), (2.5 * saes[1].W_dec[f])[None, None].to(y.dtype))

    frozen = {"all": ["pattern", "scale", "mlp_out"], "attention": ["pattern"], None: []}[freeze]
    edits: list[Any] = [(site, lambda y, site=site: base[site]) for site in base if site.endswith(tuple(frozen))]
    edits += [
        (f"blocks.{i}.hook_attn_out", lambda y, i=i: base[f"blocks.{i}.hook_attn_out"])
        for i in (0, 1)
        if freeze == "all"
    ]
    expected, _ = lens.record(TOKENS[None], [], [*edits, ("blocks.1.hook_attn_out", more)])
    assert torch.allclose(seen.logits, expected[0], atol=1e-9)
    assert not torch.allclose(seen.logits, plain, atol=1e-3)
    assert list(seen.attention) == [0, 1]
    assert torch.allclose(seen.attention[1], base["blocks.1.hook_attn_out"][0], atol=1e-9), "as read, before it is set"


def test_a_supernode_holds_features_of_both_kinds() -> None:
    lens = as_lens(models.build("gpt2"))
    sets, saes = models.random_set(lens), models.random_saes(lens)
    graph = pb.attribute(lens, sets, TOKENS, attention_saes=saes)
    both = [next(i for i in graph.node_ids() if i.startswith(name)) for name in ("1_", "A1_")]
    group = pb.Supernode.from_node_ids("both", both)
    _, layer = group.features
    assert (layer.layer, layer.attention) == (1, True)
    given: Any = {"attention_saes": saes, "freeze": None}
    set_to_0 = pb.intervene(lens, sets, TOKENS, [(feature, 0.0) for feature in group.features], **given)
    assert torch.equal(pb.intervene(lens, sets, TOKENS, [(group, 0.0)], **given), set_to_0)
    assert torch.equal(pb.ablate(lens, sets, TOKENS, group, **given), set_to_0)
    assert torch.equal(pb.steer(lens, sets, TOKENS, group, [0.0], **given).logits[0], set_to_0[-1])
    written = pb.generate(lens, sets, TOKENS, [(group, 0.0)], max_new_tokens=2, stop_at_eos=False, **given)
    assert torch.allclose(written.logits[0], set_to_0[-1], atol=1e-9)
    other = pb.Ablation.resample(lens, sets, prompts(2, 6, seed=1)[1], attention_saes=saes)
    assert not torch.allclose(pb.ablate(lens, sets, TOKENS, group, other, **given), set_to_0, atol=1e-4)
    for sentence, wanted, options in [
        ("is of attention; give attention_saes", [(group, 0.0)], {}),
        (
            "no autoencoder of attention for layer 1",
            [(group, 0.0)],
            {"attention_saes": models.random_saes(lens, layers=[0])},
        ),
        ("feature 999 is out of range", [(pb.FeatureTarget(1, 0, 999, attention=True), 0.0)], given),
        ("is set twice", [(group, 0.0), (group.features[1], 1.0)], given),
    ]:
        with pytest.raises(ValueError, match=sentence):
            pb.intervene(lens, sets, TOKENS, wanted, **options)
    with pytest.raises(ValueError, match="says nothing of features of attention"):
        pb.ablate(lens, sets, TOKENS, group, pb.Ablation.zero(lens, sets), **given)
    with pytest.raises(ValueError, match=r"of attention of 'both' is no feature of this set"):
        pb.Swap.supernode(sets, group)


def test_strings_and_narrow_transcoders() -> None:
    lens = as_lens(models.build("gpt2"))
    sets = models.random_set(lens).to(dtype=torch.float32)
    logits = pb.intervene(lens, sets, "w3 w1 w4", [(0, -1, 2, 3.0)])
    assert logits.shape == (4, models.VOCAB)
    assert logits.dtype == torch.float64
    assert sets[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ([(3, 0, 0, 1.0)], r"no transcoder for layer 3; the set has layers \[0, 1\]"),
        ([(2, 0, 0, 1.0)], r"no transcoder for layer 2; the set has layers \[0, 1\]"),
        ([(0, 6, 0, 1.0)], "position 6 is outside the prompt's 6 tokens"),
        ([(0, -7, 0, 1.0)], "position -7 is outside the prompt's 6 tokens"),
        ([(0, 0, 40, 1.0)], r"feature 40 is out of range; layer 0 has features 0\.\.39"),
        ([(0, 0, -1, 1.0)], "feature -1 is out of range"),
        ([(0, 0, 1, float("nan"))], "value of feature 1 must be finite, got nan"),
        ([(0, 0, 1, float("inf"))], "must be finite, got inf"),
        ([(0, 5, 1, 1.0), (0, -1, 1, 2.0)], "layer 0, position 5, feature 1 is set twice"),
        ([(0, 0, 1)], r"an intervention is \(layer, position, feature, value\).*got \(0, 0, 1\)"),
        ([(0, 1.5, 1, 1.0)], "three integers and a number"),
        ([(0, 0, 1, "high")], "three integers and a number"),
    ],
)
def test_what_cannot_be_done_is_said(wanted: Any, sentence: str) -> None:
    lens = as_lens(models.build("gpt2"))
    sets = models.random_set(lens, layers=[0, 1])
    with pytest.raises(ValueError, match=sentence):
        pb.intervene(lens, sets, TOKENS, wanted)


def test_a_wrong_freeze_or_another_models_transcoders_are_refused() -> None:
    lens = as_lens(models.build("gpt2"))
    sets = models.random_set(lens)
    with pytest.raises(ValueError, match="freeze must be 'all', 'attention' or None, got True"):
        pb.intervene(lens, sets, TOKENS, [(0, 0, 0, 1.0)], freeze=True)  # type: ignore[arg-type]
    other = as_lens(models.build("gpt2", seed=1))
    with pytest.raises(ValueError, match="other weights"):
        pb.intervene(other, sets, TOKENS, [(0, 0, 0, 1.0)])
    pb.intervene(other, sets, TOKENS, [(0, 0, 0, 1.0)], strict=False)


def test_the_model_is_left_as_it_was() -> None:
    lens = as_lens(models.build("neox-parallel"))
    sets = models.random_set(lens)
    plain = lens.logits(TOKENS[None])
    pb.intervene(lens, sets, TOKENS, [(0, 0, 0, 50.0)], freeze="all")
    assert torch.equal(lens.logits(TOKENS[None]), plain)
    assert sum(len(h.fwd_hooks) for h in lens.model.hook_dict.values()) == 0
