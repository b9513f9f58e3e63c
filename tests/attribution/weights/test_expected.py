"""Expected attributions: streaming equals batch, whatever the order of the work; and the figures made of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import pullback as pb
from pullback.attribution.weights.interference import spearman
from pullback.attribution.weights.wiring import Wiring
from pullback.lens import as_lens
from pullback.ops import Coactivation, SparseActivations
from tests import models


def tokens(n: int = 7, T: int = 6) -> Tensor:
    return torch.randint(0, models.VOCAB - 2, (n, T), generator=torch.Generator().manual_seed(2))


def dense(name: str, sets: Any, prompts: Tensor, keep: Tensor, source: int, target: int) -> tuple[Tensor, ...]:
    """V, ERA and TWERA in the words of their definition, (F_source, F_target)."""
    lens = as_lens(models.build(name))
    io = lens.mlp_io(prompts)
    a, b = (sets.encode(layer, io[layer][0][keep]).to_dense() for layer in (source, target))
    wiring = Wiring(lens, sets)
    V = wiring.writes(source, target) @ wiring.reads(target, torch.arange(sets[target].d_sae)).T
    era = (a[:, :, None] * (b[:, None] > 0)).mean(0) * V
    twera = (a[:, :, None] * b[:, None]).mean(0) / b.mean(0).clamp(min=1e-10) * V
    return V, era, twera


def filled(found: Any, values: Tensor, F: int = 40) -> Tensor:
    out = torch.zeros(F, F, dtype=torch.float64)
    out[found.rows(), found.indices.long()] = values
    return out


@pytest.mark.parametrize("cross_layer", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_they_are_their_definition(name: str, cross_layer: bool) -> None:
    lens = as_lens(models.build(name))
    sets = (models.random_clt if cross_layer else models.random_set)(lens)
    prompts = tokens()
    prompts[:3, 0] = models.VOCAB - 1  # the beginning of a sequence, as the tokenizer has it
    keep = torch.ones_like(prompts, dtype=torch.bool)
    keep[:3, 0] = False
    keep[2, 4:] = False
    mask = torch.ones_like(keep)
    mask[2, 4:] = False
    sums = pb.expected_attributions(lens, sets, prompts, mask=mask, batch_size=3)
    assert list(sums.sums) == [(0, 1), (0, 2), (1, 2)]
    assert sums.n_prompts == 7
    assert sums.sums[0, 2].count == int(keep.sum())
    for source, target in sums.sums:
        found = sums.weights(lens, sets, source, target)
        V, era, twera = dense(name, sets, prompts, keep, source, target)
        met = filled(found, torch.ones_like(found.virtual)) > 0
        assert torch.allclose(filled(found, found.virtual), V * met, atol=1e-12)
        assert torch.allclose(filled(found, found.era), era, atol=1e-12)
        assert torch.allclose(filled(found, found.twera), twera, atol=1e-12)
        assert 0 < int(met.sum()) < met.numel()


def test_streaming_is_batch() -> None:
    """O12: one prompt at a time, all at once, in two halves that are merged, and interrupted in the middle."""
    lens = as_lens(models.build("gpt2"))
    sets = models.random_set(lens)
    prompts = tokens()
    whole = pb.expected_attributions(lens, sets, prompts, batch_size=100)
    single = pb.expected_attributions(lens, sets, prompts, batch_size=1)
    lists = pb.expected_attributions(lens, sets, [prompts[:2], prompts[2:]])
    halves = pb.expected_attributions(lens, sets, prompts[:4]).merge(pb.expected_attributions(lens, sets, prompts[4:]))
    stopped = pb.expected_attributions(lens, sets, prompts[:3], batch_size=2).state_dict()
    fresh = pb.ExpectedAttributions(sets).load_state_dict({name: value.clone() for name, value in stopped.items()})
    resumed = pb.expected_attributions(lens, sets, prompts, batch_size=2, into=fresh)
    for other in (single, lists, halves, resumed):
        assert other.n_prompts == 7
        for pair in whole.sums:
            a, b = whole.weights(lens, sets, *pair), other.weights(lens, sets, *pair)
            assert torch.equal(a.indices, b.indices)
            assert torch.equal(a.indptr, b.indptr)
            for field in ("virtual", "era", "twera"):
                assert torch.allclose(getattr(a, field), getattr(b, field), atol=1e-12)


def test_a_binary_target_and_a_constant_source() -> None:
    """TWERA = a V where a is constant; ERA = P(b) TWERA where b is 0 or 1 (METHODS 3.3)."""
    lens = as_lens(models.build("gpt2"))
    sets = models.random_set(lens)
    on = torch.tensor([True, False, True, True, False, True])

    def column(values: Tensor, feature: int) -> SparseActivations:
        counts = (values != 0).long()
        indptr = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        return SparseActivations(
            indptr, torch.full((int(counts.sum()),), feature, dtype=torch.int32), values[values != 0], 40
        )

    sums = pb.ExpectedAttributions(sets, [(0, 1)])
    sums.add({0: column(torch.full((6,), 2.5, dtype=torch.float64), 3), 1: column(on.double(), 5)})
    found = sums.weights(lens, sets, 0, 1)
    assert len(found.virtual) == 1
    assert float(found.twera) == pytest.approx(2.5 * float(found.virtual), abs=1e-12)
    assert float(found.era) == pytest.approx(4 / 6 * float(found.twera), abs=1e-12)
    assert found.top_into(5) == [(3, float(found.twera))]
    assert found.top_into(6) == []


def test_features_that_never_meet_are_interference() -> None:
    lens = as_lens(models.build("gpt2"))
    sets = models.random_set(lens)
    sums = pb.expected_attributions(lens, sets, tokens())
    found = pb.interference(lens, sets, sums, 0, 2, k=5)
    V, _, twera = dense("gpt2", sets, tokens(), torch.ones(7, 6, dtype=torch.bool), 0, 2)
    met = twera != 0
    assert (found.met, found.pairs) == (int(met.sum()), 1600)
    assert found.share == pytest.approx(1 - float(V[met].abs().sum() / V.abs().sum()), abs=1e-12)
    assert 0 < found.share < 1
    a, b = (values.abs()[met].argsort().argsort().double() for values in (V, twera))
    assert found.rank_correlation == pytest.approx(float(torch.corrcoef(torch.stack([a, b]))[0, 1]), abs=1e-9)
    fired = met.any(0)
    shares = []
    for j in fired.nonzero()[:, 0].tolist():
        wired = set(V[:, j].abs().argsort(descending=True)[:5].tolist())
        used = [i for i in twera[:, j].abs().argsort(descending=True)[:5].tolist() if twera[i, j] != 0]
        shares.append(len(wired & set(used)) / 5)
    assert found.top_overlap == pytest.approx(sum(shares) / len(shares), abs=1e-12)


def test_sums_before_the_first_token() -> None:
    lens = as_lens(models.build("gpt2"))
    sets = models.random_set(lens)
    found = pb.interference(lens, sets, pb.ExpectedAttributions(sets), 0, 1)
    assert found.share == 1
    assert found.met == 0
    assert math.isnan(found.rank_correlation)
    assert math.isnan(found.top_overlap)


def test_rank_correlation_with_ties() -> None:
    a = torch.tensor([1.0, 2.0, 2.0, 4.0])
    assert spearman(a, a) == pytest.approx(1)
    assert spearman(a, -a) == pytest.approx(-1)
    assert spearman(a, torch.tensor([1.0, 3.0, 2.0, 4.0])) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)


def test_what_does_not_fit_is_refused() -> None:
    lens = as_lens(models.build("gpt2"))
    sets = models.random_set(lens)
    with pytest.raises(ValueError, match=r"no pairs of layers \[\(2, 1\)\]"):
        pb.ExpectedAttributions(sets, [(0, 1), (2, 1)])
    with pytest.raises(ValueError, match="no pairs of layers"):
        pb.ExpectedAttributions(models.random_set(lens, layers=[1]))
    sums = pb.ExpectedAttributions(sets, [(0, 1)])
    with pytest.raises(ValueError, match=r"\(0, 2\) was not counted"):
        sums.weights(lens, sets, 0, 2)
    with pytest.raises(ValueError, match="do not add up"):
        sums.merge(pb.ExpectedAttributions(sets))
    with pytest.raises(ValueError, match="the state has no count"):
        pb.ExpectedAttributions(sets).load_state_dict(sums.state_dict())
    with pytest.raises(ValueError, match="counts Coactivation"):
        pb.ExpectedAttributions(models.random_set(lens, d_sae=30), [(0, 1)]).load_state_dict(sums.state_dict())
    with pytest.raises(ValueError, match=r"are \[n, T\], got \[7, 6\] and \[7, 5\]"):
        pb.expected_attributions(lens, sets, tokens(), mask=torch.ones(7, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"a mask is of torch.bool, .*, got torch.int64"):
        pb.expected_attributions(lens, sets, tokens(), mask=torch.ones(7, 6, dtype=torch.long))
    for nothing in ([], torch.zeros(0, 5, dtype=torch.long), iter(())):
        with pytest.raises(ValueError, match="there is no text: tokens are empty"):
            pb.expected_attributions(lens, sets, nothing)
    with pytest.raises(ValueError, match=r"are ids, \[n, T\], or batches of such, got a string"):
        pb.expected_attributions(lens, sets, "a b")
    for wrong in (["a b"], [3, 4], [torch.tensor([3, 4])]):
        with pytest.raises(ValueError, match=r"are ids, \[n, T\], or batches of such, got one of"):
            pb.expected_attributions(lens, sets, wrong)
    with pytest.raises(ValueError, match="a mask goes with one tensor"):
        pb.expected_attributions(lens, sets, [tokens()], mask=torch.ones(7, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="`into` has its pairs of layers; leave out pairs"):
        pb.expected_attributions(lens, sets, tokens(), [(1, 2)], into=sums)
    with pytest.raises(ValueError, match="k must be at least 1"):
        pb.interference(lens, sets, sums, 0, 1, k=0)


def test_a_state_is_all_there_is_to_the_sums() -> None:
    """Of pairs and of blocks of chosen rows alike; a damaged state is refused."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(20, 6, generator=generator).relu()
    indptr = torch.nn.functional.pad((x != 0).sum(1).cumsum(0), (1, 0))
    acts = SparseActivations(indptr, (x != 0).nonzero()[:, 1].int(), x[x != 0], 6)
    for rows in (None, [4, 1]):
        sums = Coactivation(6, rows=rows).add(acts)
        loaded = Coactivation.from_state_dict(sums.state_dict())
        assert repr(loaded) == repr(sums)
        for a, b in zip(loaded.add(acts).top(9), sums.add(acts).top(9), strict=True):
            assert torch.equal(a, b)
        state = sums.state_dict()
        with pytest.raises(ValueError, match="the state has no gated"):
            Coactivation.from_state_dict({name: value for name, value in state.items() if name != "gated"})
        with pytest.raises(ValueError, match="the state's sums are not"):
            Coactivation.from_state_dict(state | {"products": state["products"][:1]})
