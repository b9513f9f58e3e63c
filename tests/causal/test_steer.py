"""Steering sweeps and ablations are interventions with values worked out for the caller."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pullback as pb
from pullback.causal import Margin
from pullback.lens import as_lens
from tests import models
from tests.causal.exact import own_mlps, prompts, relu_model

TOKENS, OTHER = prompts(2, 6, seed=1)


def features_at(lens: Any, sets: Any, tokens: torch.Tensor, layer: int) -> torch.Tensor:
    """(T, F)"""
    return sets.encode(layer, lens.mlp_io(tokens[None], [layer])[layer][0][0]).to_dense()


def test_each_factor_is_an_intervention() -> None:
    lens = relu_model()
    sets = own_mlps(lens)
    z = features_at(lens, sets, TOKENS, 0)
    f = int(z[3].argmax())
    factors = [-1, 0, 1, 2.5]
    ours = pb.steer(lens, sets, TOKENS, [(0, 3, f)], factors)
    assert ours.factors == [-1.0, 0.0, 1.0, 2.5]
    for row, factor in zip(ours.logits, factors, strict=True):
        assert torch.allclose(row, pb.intervene(lens, sets, TOKENS, [(0, 3, f, factor * float(z[3, f]))])[-1])
    assert torch.allclose(ours.logits[2], lens.logits(TOKENS[None])[0, -1], atol=1e-10)
    assert torch.allclose(ours.probabilities.sum(-1), torch.ones(4, dtype=torch.float64))
    assert torch.allclose(ours.margins(3, 7), ours.logits[:, 3] - ours.logits[:, 7])
    assert torch.allclose(ours.margins(3), ours.logits[:, 3] - ours.logits.mean(-1))
    table = ours.to_pandas([3, 7])
    assert table["factor"].tolist() == [-1, -1, 0, 0, 1, 1, 2.5, 2.5]
    assert table["logit"].tolist() == ours.logits[:, [3, 7]].flatten().tolist()
    assert table["token"].tolist() == [3, 7] * 4
    assert repr(ours) == f"Steered(factors=[-1.0, 0.0, 1.0, 2.5], logits=[4, {ours.logits.shape[1]}])"


def test_answers_are_named_by_words_too() -> None:
    model, sets = pb.zoo.load("tiny-mix"), pb.zoo.transcoders("tiny-mix")
    graph = pb.attribute(model, sets, "the capital of the state containing dallas is", max_n_logits=1)
    feature = (graph.top_features(1)[0],)
    ours = pb.steer(model, sets, "the capital of the state containing dallas is", pb.Supernode("top", feature), [1, 0])
    austin, sacramento = (int(model.to_tokens(word, prepend_bos=False)[0, 0]) for word in ("austin", "sacramento"))
    assert torch.equal(ours.margins("austin", "sacramento"), ours.margins(austin, sacramento))
    table = ours.to_pandas(["austin", sacramento])
    assert table["token"].tolist() == ["austin", sacramento] * 2
    assert table["logit"].tolist() == ours.logits[:, [austin, sacramento]].flatten().tolist()
    with pytest.raises(ValueError, match="steer: the target 'austin sacramento' is 2 tokens"):
        ours.margins("austin sacramento")
    with pytest.raises(ValueError, match="tokens is one string; give a list of tokens, \\['austin'\\]"):
        ours.to_pandas("austin")
    assert ours.to_pandas([torch.tensor(5)])["token"].tolist() == [5] * len(ours.factors)
    with pytest.raises(ValueError, match="steer: target tokens must lie in"):
        ours.to_pandas([10**6])


def test_with_everything_frozen_steering_is_a_straight_line() -> None:
    lens = as_lens(models.build("RMS-gqa-rotary-gated"))
    sets = models.random_set(lens, skip=True)
    group = pb.Supernode("some", tuple((i, slice(1, None), f) for i in range(3) for f in range(20)))
    for options in ({"freeze": "all"}, {"constrained_layers": range(3)}):
        at = pb.steer(lens, sets, TOKENS, group, [0, 1, 2, 5], **options).margins(3, 7)
        assert torch.allclose(at, at[0] + torch.tensor([0, 1, 2, 5]) * (at[1] - at[0]), atol=1e-9)
        assert abs(float(at[1] - at[0])) > 1e-3


def test_what_cannot_be_steered_is_said() -> None:
    lens = relu_model()
    sets = own_mlps(lens)
    off = int(features_at(lens, sets, TOKENS, 0)[3].argmin())
    with pytest.raises(ValueError, match="none of the 1 features of 'features' is active"):
        pb.steer(lens, sets, TOKENS, [(0, 3, off)], [2.0])
    with pytest.raises(ValueError, match="at least one factor"):
        pb.steer(lens, sets, TOKENS, [(0, 3, off)], [])
    with pytest.raises(ValueError, match=r"factors are several numbers, such as \[0, 1\], got 1\.0"):
        pb.steer(lens, sets, TOKENS, [(0, 3, off)], 1.0)


def test_ablations_are_interventions() -> None:
    lens = as_lens(models.build("gpt2"))
    sets = models.random_set(lens)
    z, other = (features_at(lens, sets, t, 1) for t in (TOKENS, OTHER))
    f = [int(z[p].argmax()) for p in range(6)]
    places = [(1, 2, f[2]), (1, -1, f[5]), (1, 4, int(other[4].argmax()))]

    def by_hand(values: list[float]) -> torch.Tensor:
        return pb.intervene(lens, sets, TOKENS, [(*place, v) for place, v in zip(places, values, strict=True)])

    assert torch.equal(pb.ablate(lens, sets, TOKENS, places), by_hand([0.0, 0.0, 0.0]))
    resampled = pb.Ablation.resample(lens, sets, OTHER)
    expected = by_hand([float(other[p, i]) for _, p, i in places])
    assert torch.allclose(pb.ablate(lens, sets, TOKENS, places, resampled), expected, atol=1e-12)
    corpus = [TOKENS, OTHER, OTHER[:4]]
    all_z = torch.cat([features_at(lens, sets, t, 1)[1:] for t in corpus])
    mean = pb.Ablation.mean(lens, sets, corpus, positions=slice(1, None))
    expected = by_hand([float(all_z.mean(0)[i]) for _, _, i in places])
    assert torch.allclose(pb.ablate(lens, sets, TOKENS, pb.Supernode("x", tuple(places)), mean), expected, atol=1e-10)


def test_slices_are_resampled_position_by_position() -> None:
    lens = as_lens(models.build("gpt2"))
    sets = models.random_set(lens)
    other = features_at(lens, sets, OTHER, 0)
    ours = pb.ablate(lens, sets, TOKENS, [(0, slice(1, 5), 3)], pb.Ablation.resample(lens, sets, OTHER), freeze=None)
    by_hand = [(0, p, 3, float(other[p, 3])) for p in range(1, 5)]
    assert torch.allclose(ours, pb.intervene(lens, sets, TOKENS, by_hand, freeze=None), atol=1e-12)


def test_errors_and_embeddings_of_ablations() -> None:
    lens = as_lens(models.build("gpt2"))
    sets = models.random_set(lens, layers=[0, 2])
    corpus = [TOKENS, OTHER]
    mean = pb.Ablation.mean(lens, sets, corpus)
    x = {i: torch.cat([lens.mlp_io(t[None], [i])[i][0][0] for t in corpus]) for i in range(3)}
    y = {i: torch.cat([lens.mlp_io(t[None], [i])[i][1][0] for t in corpus]) for i in range(3)}
    for i in (0, 2):
        assert torch.allclose(mean.errors[i][0], (y[i] - sets[i](x[i])).mean(0), atol=1e-10)
    assert torch.allclose(mean.errors[1][0], y[1].mean(0), atol=1e-10), "without a transcoder all is error"
    assert torch.allclose(mean.embed[0], lens.W_E[torch.cat(corpus)].mean(0), atol=1e-10)


def test_what_cannot_be_ablated_is_said() -> None:
    lens = as_lens(models.build("gpt2"))
    sets = models.random_set(lens)
    with pytest.raises(ValueError, match="the prompt has 6 tokens, and the one that values are taken from 4"):
        pb.ablate(lens, sets, TOKENS, [(0, 1, 3)], pb.Ablation.resample(lens, sets, TOKENS[:4]))
    for corpus in ([], [TOKENS[:2]]):
        with pytest.raises(ValueError, match="prompts is one string"):
            pb.Ablation.mean(lens, sets, "a b")
        with pytest.raises(ValueError, match="no token to take the mean over"):
            pb.Ablation.mean(lens, sets, corpus, positions=slice(3, None))


def test_margins() -> None:
    logits = torch.arange(12.0).view(2, 2, 3)
    assert Margin(2, 0)(logits).tolist() == [2.0, 2.0]
    assert Margin(2)(logits).tolist() == [1.0, 1.0]
