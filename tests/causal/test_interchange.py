"""Features of one prompt in another: against patched MLP outputs, hand sums and finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pullback.causal import Supernode, Swap, between_group_share, interchange, swap_scores
from pullback.lens import as_lens
from pullback.transcoders import BatchTopK, Transcoder, TranscoderSet
from tests import models
from tests.causal.exact import own_mlps, prompts, relu_model

BASE, SOURCE = prompts(4, 6, seed=2), prompts(4, 6, seed=3)
F = 24  # the ReLU model's MLP width
ALL, NONE = torch.ones(F, dtype=torch.bool), torch.zeros(F, dtype=torch.bool)


def last(lens: Any, tokens: Tensor) -> Tensor:
    return lens.logits(tokens)[:, -1]


@pytest.mark.parametrize("name", ["LN-gqa-standard-plain", "RMS-gqa-rotary-gated", "neox-parallel"])
def test_the_same_prompt_changes_nothing(name: str) -> None:
    lens = as_lens(models.build(name))
    sets = models.random_set(lens, skip=True)
    everything = torch.ones(40, dtype=torch.bool)
    swaps = [Swap.features(i, p, everything) for i in range(3) for p in (1, 5)]
    assert torch.allclose(interchange(lens, sets, BASE, BASE, swaps), last(lens, BASE), atol=1e-10)
    assert torch.allclose(interchange(lens, sets, BASE, SOURCE, []), last(lens, BASE), atol=0)
    nothing = [Swap.features(0, 2, ~everything)]
    assert torch.allclose(interchange(lens, sets, BASE, SOURCE, nothing), last(lens, BASE), atol=1e-10)


@pytest.mark.parametrize(("base_pos", "source_pos"), [(3, 3), (5, 2)])
def test_all_features_of_exact_transcoders_are_the_mlp_output(base_pos: int, source_pos: int) -> None:
    lens = relu_model()
    sets = own_mlps(lens)
    given = {i: y for i, (_, y) in lens.mlp_io(SOURCE, [0, 1]).items()}

    def put(layer: int):  # noqa: ANN202
        def fn(_x: Tensor, y: Tensor) -> Tensor:
            y = y.clone()
            y[:, base_pos] = given[layer][:, source_pos]
            return y

        return fn

    for layers in ([0], [1], [0, 1]):
        with lens.patch_mlp({i: put(i) for i in layers}):
            expected = last(lens, BASE)
        swaps = [Swap.features(i, base_pos, ALL, source_pos) for i in layers]
        ours = interchange(lens, sets, BASE, SOURCE, swaps)
        assert torch.allclose(ours, expected, atol=1e-9)
        assert float((ours - last(lens, BASE)).abs().max()) > 1e-3


def test_parts_add_up_and_lists_agree_with_masks() -> None:
    lens = relu_model()
    sets = own_mlps(lens)
    some = torch.arange(F) % 3 == 0
    whole = interchange(lens, sets, BASE, SOURCE, [Swap.features(0, 3, ALL)])
    parts = [Swap.features(0, 3, some), Swap.features(0, 3, ~some)]
    assert torch.allclose(interchange(lens, sets, BASE, SOURCE, parts), whole, atol=1e-10)
    masked = interchange(lens, sets, BASE, SOURCE, [Swap.features(0, 3, some)])
    pairs, ids = torch.cartesian_prod(torch.arange(4), some.nonzero()[:, 0]).T
    shuffle = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    listed = Swap.listed(0, 3, pairs[shuffle], ids[shuffle].int(), F)
    assert torch.equal(interchange(lens, sets, BASE, SOURCE, [listed]), masked)
    only_second = Swap.listed(0, 3, pairs[pairs == 1], ids[pairs == 1], F)
    ours = interchange(lens, sets, BASE, SOURCE, [only_second])
    assert torch.allclose(ours[1], masked[1], atol=1e-12)
    assert torch.allclose(ours[[0, 2, 3]], last(lens, BASE)[[0, 2, 3]], atol=1e-12)


def test_a_supernode_is_its_features() -> None:
    lens = relu_model()
    sets = own_mlps(lens)
    group = Supernode("three", ((0, 3, 5), (0, 3, 7), (1, 4, 2)))
    ours = interchange(lens, sets, BASE, SOURCE, Swap.supernode(sets, group))
    masks = [torch.isin(torch.arange(F), torch.tensor(ids)) for ids in ([5, 7], [2])]
    by_hand = [Swap.features(0, 3, masks[0]), Swap.features(1, 4, masks[1])]
    assert torch.equal(ours, interchange(lens, sets, BASE, SOURCE, by_hand))
    for wrong in ((0, slice(1, 2), 5), (9, 1, 5), (0, 1, F)):
        with pytest.raises(ValueError, match="of 'x' is no feature of this set at one position"):
            Swap.supernode(sets, Supernode("x", (wrong,)))


def test_a_batch_equals_its_pairs_one_by_one_and_lengths_may_differ() -> None:
    lens = relu_model()
    sets = own_mlps(lens)
    longer = prompts(4, 9, seed=5)
    swaps = [Swap.features(0, 3, ALL, 8), Swap.features(2, 5, torch.arange(F) < 9, 0)]
    together = interchange(lens, sets, BASE, longer, swaps)
    one_by_one = [interchange(lens, sets, BASE[[n]], longer[[n]], swaps) for n in range(4)]
    assert torch.allclose(together, torch.cat(one_by_one), atol=1e-10)


def test_what_does_not_fit_is_said() -> None:
    lens = relu_model()
    sets = own_mlps(lens)

    def refused(sentence: str, *swaps: Swap, base: Tensor = BASE, source: Tensor = SOURCE) -> None:
        with pytest.raises(ValueError, match=sentence):
            interchange(lens, sets, base, source, swaps)

    refused("no transcoder for layer 7", Swap.features(7, 0, ALL))
    refused(r"base position 6 is outside 0\.\.5", Swap.features(0, 6, ALL, 0))
    refused(r"source position 6 is outside 0\.\.5", Swap.features(0, 0, ALL, 6))
    refused(r"base position -1 is outside", Swap.features(0, -1, ALL))
    refused(r"need as many rows, got \[4, 6\] and \[3, 6\]", source=SOURCE[:3])
    refused("need as many rows", base=BASE[0])
    refused(
        "source: token id 99 is outside the vocabulary",
        source=torch.full((4, 6), 99),
    )
    refused("base has 13 tokens", base=torch.zeros(4, 13, dtype=torch.long))
    refused("selects among 40 features, but that layer has 24", Swap.features(0, 0, torch.ones(40, dtype=torch.bool)))
    refused("selects among 30 features", Swap.listed(0, 0, torch.tensor([0]), torch.tensor([3]), 30))
    refused(
        r"two swaps set feature \d+ of layer 1 at position 2", Swap.features(1, 2, ALL), Swap.features(1, 2, ALL, 0)
    )
    with pytest.raises(ValueError, match=r"chosen must be a mask \(F\) of bool, got torch.int64 \[2\]"):
        Swap.features(0, 0, torch.tensor([3, 4]))
    with pytest.raises(ValueError, match=r"ids must lie in 0\.\.23, got 5\.\.24"):
        Swap.listed(0, 0, torch.tensor([0, 1]), torch.tensor([5, 24]), F)
    with pytest.raises(ValueError, match="two vectors of one length"):
        Swap.listed(0, 0, torch.tensor([0]), torch.tensor([5, 6]), F)
    with pytest.raises(ValueError, match="other weights"):
        interchange(
            models.native(seed=22, act_fn="relu"), models.random_set(as_lens(models.native(seed=23))), BASE, SOURCE, []
        )


def test_features_that_depend_on_the_batch_are_refused() -> None:
    lens = relu_model()
    ids = torch.arange(4)

    def batch_topk(threshold: float | None) -> TranscoderSet:
        tc = own_mlps(lens)[0]
        return TranscoderSet(
            {
                0: Transcoder(
                    tc.W_enc, tc.b_enc, tc.W_dec, tc.b_dec, activation=BatchTopK(4, threshold), reading=tc.reading
                )
            }
        )

    swaps = [Swap.features(0, 3, ALL)]
    for calls in (
        lambda s: interchange(lens, s, BASE, SOURCE, swaps),
        lambda s: swap_scores(lens, s, BASE, SOURCE, ids, ids, [0], 3),
    ):
        calls(batch_topk(0.1))
        with pytest.raises(ValueError, match="BatchTopK of layer 0 has no threshold.*calibrate one"):
            calls(batch_topk(None))


# ---- eta squared -----------------------------------------------------------------------------------------------


def test_between_group_share_by_hand() -> None:
    values = torch.tensor([[1.0, 5.0, 0.1], [3.0, 5.0, 0.1], [5.0, 7.0, 0.1], [11.0, 7.0, 0.1]])
    groups = torch.tensor([4, 4, 9, 9])
    # Column 0: mean 5, group means 2 and 8: between 2 (9 + 9) = 36, total 16 + 4 + 0 + 36 = 56. Column 1: all between.
    assert torch.allclose(between_group_share(values, groups), torch.tensor([36 / 56, 1.0, 0.0]))
    assert torch.equal(between_group_share(values, torch.arange(4)), torch.tensor([1.0, 1.0, 0.0]))
    assert torch.equal(between_group_share(values, torch.zeros(4)), torch.zeros(3))


@given(st.integers(0, 1000), st.integers(1, 30), st.integers(1, 5), st.sampled_from([1e-12, 1.0, 1e6]))
def test_between_group_share_is_one_less_what_is_within(seed: int, n: int, k: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, 3, generator=generator, dtype=torch.float64) * scale
    groups = torch.randint(0, k, (n,), generator=generator)
    share = between_group_share(values, groups)
    within = sum((values[groups == g] - values[groups == g].mean(0)).pow(2).sum(0) for g in groups.unique())
    total = (values - values.mean(0)).pow(2).sum(0)
    expected = torch.where(total > 0, 1 - within / total, torch.zeros(3))
    assert torch.allclose(share, expected, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(value=st.floats(-1e3, 1e3, allow_subnormal=False), n=st.integers(1, 12))
@settings(max_examples=15)
def test_a_constant_column_has_no_share(dtype: torch.dtype, value: float, n: int) -> None:
    """The mean of n equal numbers need not be that number: the difference is no variance."""
    column = torch.full((n, 1), value, dtype=dtype)
    assert between_group_share(column, torch.arange(n) % 2).tolist() == [0.0]


def test_groups_must_fit() -> None:
    with pytest.raises(ValueError, match=r"need groups \(n\), got \[4, 2\] and \[3\]"):
        between_group_share(torch.ones(4, 2), torch.zeros(3))
    with pytest.raises(ValueError, match="need groups"):
        between_group_share(torch.ones(0, 2), torch.zeros(0))


# ---- swap scores -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["LN-gqa-standard-plain", "RMS-gqa-rotary-gated", "neox-parallel"])
def test_swap_scores_are_derivatives(name: str) -> None:
    """Score = change of the feature times the slope of the logit difference along its decoder row, mean of the ends."""
    lens = as_lens(models.build(name))
    sets = models.random_set(lens)
    target, other = torch.tensor([1, 2, 3, 4]), torch.tensor([9, 8, 7, 6])
    pos, layers, eps = 2, [2, 0], 1e-5
    pair, layer, feature, score = swap_scores(lens, sets, BASE, SOURCE, target, other, layers, pos)
    z = {
        (i, which): sets.encode(i, lens.mlp_io(t, [i])[i][0][:, pos]).to_dense()
        for i in layers
        for which, t in enumerate((BASE, SOURCE))
    }
    for i in layers:
        expected_places = ((z[i, 0] != 0) | (z[i, 1] != 0)).nonzero()
        ours = torch.stack([pair, feature], 1)[layer == i]
        assert torch.equal(ours, expected_places), "every feature active in either prompt, once, in order"

    def difference(tokens: Tensor, i: int, direction: Tensor, step: float) -> Tensor:
        def add(_x: Tensor, y: Tensor) -> Tensor:
            y = y.clone()
            y[:, pos] += step * direction
            return y

        with lens.patch_mlp({i: add}):
            logits = last(lens, tokens)
        rows = torch.arange(4)
        return logits[rows, target] - logits[rows, other]

    for n in range(0, len(score), 7):
        p, i, f = int(pair[n]), int(layer[n]), int(feature[n])
        row = sets[i].W_dec[f]
        slopes = [(difference(t, i, row, eps) - difference(t, i, row, -eps))[p] / (2 * eps) for t in (BASE, SOURCE)]
        expected = (z[i, 1] - z[i, 0])[p, f] * sum(slopes) / 2
        assert abs(float(score[n] - expected)) <= 1e-7 * max(1.0, abs(float(expected)))


def test_swap_scores_of_the_same_prompt_are_zero_and_keep_no_gradient() -> None:
    lens = relu_model()
    sets = own_mlps(lens)
    ids = torch.arange(4)
    *_, score = swap_scores(lens, sets, BASE, BASE, ids, ids + 1, [0, 1], -1)
    assert float(score.abs().max()) < 1e-12
    assert not score.requires_grad
    assert all(p.grad is None for p in lens.model.parameters())


def test_a_layer_named_twice_counts_once() -> None:
    lens = relu_model()
    sets = own_mlps(lens)
    ids = torch.arange(4)
    once = swap_scores(lens, sets, BASE, SOURCE, ids, ids + 1, [0], 2)
    twice = swap_scores(lens, sets, BASE, SOURCE, ids, ids + 1, [0, 0], 2)
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


def test_swap_scores_refuse_what_does_not_fit() -> None:
    lens = relu_model()
    sets = own_mlps(lens)
    ids = torch.arange(4)

    def refused(sentence: str, **changes: Any) -> None:
        given = {"base": BASE, "source": SOURCE, "target": ids, "other": ids + 1, "layers": [0], "pos": 2} | changes
        with pytest.raises(ValueError, match=sentence):
            swap_scores(lens, sets, **given)

    refused("no transcoder for layer 5", layers=[0, 5])
    refused("at least one layer", layers=[])
    refused("position within the 6 tokens", pos=6)
    refused(r"must be \(N, T\), target and other \(N\), got \[4, 6\], \[4, 6\], \[3\], \[4\]", target=ids[:3])
    refused("must be", source=prompts(4, 5, seed=9))
    refused("token id 99 is outside", base=torch.full((4, 6), 99))
    refused("target: token id -1 is outside", target=ids - 1)
    refused("other: token id 99 is outside", other=ids + 96)
    with pytest.raises(ValueError, match="other weights"):
        swap_scores(relu_model(), models.random_set(as_lens(models.native(seed=23))), BASE, SOURCE, ids, ids, [0], 1)
