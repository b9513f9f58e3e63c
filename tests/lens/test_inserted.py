"""Dictionaries inserted into the model: its values stay, its features have gradients, and it comes back as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pullback as pb
from pullback import zoo
from pullback.lens import Lens, as_lens, inserted
from tests import families, models

TOKENS = torch.randint(0, models.VOCAB, (2, 6), generator=torch.Generator().manual_seed(3))
PLAIN = "LN-gqa-standard-plain"


def must_not_move(lens: Lens, tokens: Tensor, *dictionaries: Any) -> None:
    before = lens.logits(tokens)
    with inserted(lens, *dictionaries) as run:
        after = lens.model(tokens)
    assert after.requires_grad
    assert float((after - before).detach().abs().max()) <= 1e-12
    assert torch.equal(lens.logits(tokens), before)
    for site, features in run.features.items():
        assert features.acts.n_rows == tokens.numel()
        assert torch.equal(features.read.detach(), features.acts.values.detach()), site
        assert float(run.leaves[site].detach().abs().max()) > 0
        assert not run.leaves[site].grad_fn


@pytest.mark.parametrize("name", [PLAIN, "LNPre-mha-rotary-gated", "RMS-gqa-rotary-gated", *models.OTHERS])
def test_values_are_the_models_own(name: str) -> None:
    lens = as_lens(models.build(name))
    must_not_move(lens, TOKENS, models.random_set(lens, skip=True), models.random_saes(lens))


@pytest.mark.parametrize("name", families.FAMILIES)
def test_values_are_the_models_own_in_every_family(name: str) -> None:
    lens = as_lens(families.build(name))
    must_not_move(lens, TOKENS, models.random_clt(lens), models.random_saes(lens, layers=[0, 2]))


@pytest.mark.parametrize("name", zoo.NAMES)
def test_values_are_the_models_own_in_the_zoo(name: str) -> None:
    model = zoo.load(name, dtype=torch.float64)
    tokens = torch.tensor([[1, 5, 2, 9], [3, 3, 4, 8]])
    before = model(tokens).detach()
    saes = zoo.saes(name, dtype=torch.float64) if name == "tiny-mix" else models.random_saes(as_lens(model))
    with pb.inserted(model, zoo.transcoders(name, dtype=torch.float64), saes):
        after = model(tokens).detach()
    assert float((after - before).abs().max()) <= 1e-12


def hooks_of(model: Any) -> int:
    return sum(len(point.fwd_hooks) for point in model.hook_dict.values())


def test_the_model_comes_back_whatever_happens_inside() -> None:
    lens = as_lens(models.build(PLAIN))
    hooks, before = hooks_of(lens.model), lens.logits(TOKENS)
    with pytest.raises(ZeroDivisionError), inserted(lens, models.random_set(lens), models.random_saes(lens)):  # noqa: PT012
        lens.model(TOKENS)
        assert hooks_of(lens.model) > hooks
        raise ZeroDivisionError
    assert hooks_of(lens.model) == hooks
    assert torch.equal(lens.logits(TOKENS), before)


@pytest.mark.parametrize("activation", ["topk", "relu", "jumprelu"])
def test_what_features_read_and_write(activation: str) -> None:
    """By hand, from what the model computes at the sites."""
    lens = as_lens(models.build(PLAIN))
    sets, saes = models.random_set(lens, activation=activation, skip=True), models.random_saes(lens)
    names = ("mlp.hook_in", "hook_mlp_out", "hook_attn_out")
    _, seen = lens.record(TOKENS, [f"blocks.1.{name}" for name in names])
    x, y, attended = (seen[f"blocks.1.{name}"] for name in names)
    with inserted(lens, sets, saes) as run:
        lens.model(TOKENS)
    for site, tc, reads, writes in (
        ("blocks.1.hook_mlp_out", sets[1], x, y),
        ("blocks.1.hook_attn_out", saes[1], attended, attended),
    ):
        acts = tc.encode(reads)
        assert torch.equal(run.features[site].acts.indices, acts.indices)
        assert torch.allclose(run.features[site].acts.values.detach(), acts.values, rtol=1e-12)
        assert torch.allclose(run.leaves[site], writes - tc(reads), atol=1e-12)


def gradient_at_embeddings(lens: Lens, **options: Any) -> Tensor:
    with inserted(lens, **options) as run:
        lens.model(TOKENS)[1, -1, 4].backward()
    gradient = run.leaves["hook_embed"].grad
    assert gradient is not None
    return gradient


def test_only_what_is_asked_is_detached() -> None:
    """With nothing inserted and nothing detached, gradients are the model's own, by differences."""
    lens = as_lens(models.build(PLAIN))
    direction = torch.randn(TOKENS.shape[1], models.D_MODEL, generator=torch.Generator().manual_seed(0)).double()

    def moved(by: float) -> float:
        edits = [("hook_embed", lambda e: e + torch.stack([direction * 0, direction * by]))]
        return float(lens.record(TOKENS, [], edits)[0][1, -1, 4])

    slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
    whole = gradient_at_embeddings(lens, detach=())
    assert float((whole[1] * direction).sum()) == pytest.approx(slope, rel=1e-6)
    assert not whole[0].any(), "prompts do not mix"
    partly = [gradient_at_embeddings(lens, detach=(part,)) for part in ("patterns", "norms", "mlps")]
    assert all(not torch.allclose(one, whole) for one in partly)


def test_features_are_leaves_where_they_are_detached() -> None:
    lens = as_lens(models.build(PLAIN))
    sets, saes = models.random_set(lens), models.random_saes(lens)
    with inserted(lens, sets, saes, detach=("patterns", "norms", "mlps", "features")) as run:
        lens.model(TOKENS)[1, -1, 4].backward()
    assert all(f.acts.values.is_leaf for f in run.features.values())
    embed = run.leaves["hook_embed"].grad
    assert embed is not None
    assert embed[1, -1].any()
    assert not embed[1, :-1].any(), "from other positions there are only paths through features of attention"


def test_masks_of_another_pass_make_the_model_affine() -> None:
    """Held masks: features are read where they were active before, whatever their sign becomes."""
    lens = as_lens(models.build(PLAIN))
    sets = models.random_set(lens, activation="relu")
    with inserted(lens, sets) as run:
        lens.model(TOKENS)
    masks = {site: f.acts.detach() for site, f in run.features.items()}
    other = TOKENS.flip(0)
    with inserted(lens, sets, masks=masks) as run:
        lens.model(other)
    first = run.features["blocks.0.hook_mlp_out"]
    assert torch.equal(first.acts.indices, masks["blocks.0.hook_mlp_out"].indices)
    x = lens.record(other, ["blocks.0.mlp.hook_in"])[1]["blocks.0.mlp.hook_in"].flatten(0, 1)
    h = (x @ sets[0].W_enc.T + sets[0].b_enc)[first.acts.rows(), first.acts.indices.long()]
    assert torch.allclose(first.read.detach(), h, rtol=1e-12)
    assert float(first.read.detach().min()) < 0
    with (
        pytest.raises(ValueError, match="has 12 rows, and this pass has 5 positions"),
        inserted(lens, sets, masks=masks),
    ):
        lens.model(TOKENS[:1, :5])


def test_one_feature_is_found_by_its_place() -> None:
    lens = as_lens(models.build(PLAIN))
    with inserted(lens, models.random_set(lens)) as run:
        lens.model(TOKENS)
    features = run.features["blocks.1.hook_mlp_out"]
    ids, values = features.acts.row(7)
    assert torch.equal(features.at(7, int(ids[2])), values[2])
    absent = min(set(range(40)) - set(ids.tolist()))
    with pytest.raises(ValueError, match=f"feature {absent} is not active at row 7"):
        features.at(7, absent)


@pytest.mark.parametrize("name", families.DELEGATED)
def test_models_whose_patterns_cannot_be_detached_are_refused(name: str) -> None:
    lens = as_lens(families.build(name))
    with (
        pytest.raises(ValueError, match="patterns cannot be detached"),
        inserted(lens, models.random_set(lens)),
    ):
        lens.model(TOKENS)


def test_other_dictionaries_and_parts_are_refused() -> None:
    lens = as_lens(models.build(PLAIN))
    sets, saes = models.random_set(lens), models.random_saes(lens)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"transcoders": saes}, "goes through transcoders"),
        ({"attention_saes": sets}, "read and write hook_attn_out"),
        ({"detach": ("patterns", "scores")}, "detach takes patterns, norms, mlps, features; got scores"),
        ({"transcoders": models.random_set(as_lens(models.build("llama")))}, "was trained"),
    ]
    for options, sentence in cases:
        with pytest.raises(ValueError, match=sentence), inserted(lens, **options):
            pass
