"""The causal check: on a model whose circuit is known, and on tiny-mix."""

from __future__ import annotations

import pytest
import torch

import pullback as pb
from pullback.lens import Lens
from pullback.ops import SparseActivations
from pullback.studies import Dictionaries, causal_check, direct_shares, graph_of, split, token_shares
from pullback.studies.behaviours import open_behaviour
from pullback.studies.control import matched
from pullback.studies.dictionaries import Site, by_group, places
from tests.studies.capitals import Capitals


@pytest.fixture(scope="module")
def tiny() -> tuple[Lens, pb.TranscoderSet]:
    return pb.as_lens(pb.zoo.load("tiny-mix")), pb.zoo.transcoders("tiny-mix")


def test_on_planted_the_features_found_are_those_of_the_circuit() -> None:
    lens, sets = pb.as_lens(pb.zoo.load("planted")), pb.zoo.transcoders("planted")
    capitals = Capitals(lens)
    parts = split(capitals, lens.d_vocab, 12, per_key=2)
    check = causal_check(Dictionaries(lens, {"mlp": sets}), parts, "mlp", sizes=(3,), goal=0.8)
    truth = capitals.truth
    wanted = {(0, truth.relation_features["capital"])}
    for state in parts.keys:
        wanted |= {(0, truth.state_features[state]), (2, truth.answer_features[truth.states[state][0]])}
    assert {(f["layer"], f["feature"]) for f in check.features} == wanted
    assert check.holds
    assert check.dropped > 0.99
    assert max(map(abs, check.control)) < 0.1


@pytest.mark.parametrize("name", ["brackets", "ioi"])
def test_tiny_mix_loses_a_behaviour_with_few_features(name: str, tiny: tuple[Lens, pb.TranscoderSet]) -> None:
    lens, sets = tiny
    parts = split(open_behaviour(name, lens), lens.d_vocab, 48, per_key=8)
    check = causal_check(Dictionaries(lens, {"mlp": sets}), parts, "mlp", draws=3, goal=0.85)
    assert check.holds
    assert check.k <= 24
    assert check.n_prompts >= 32
    assert check.drawn == 1
    assert check.displaced < 0.1


def test_first_order_effects_are_those_of_small_changes(tiny: tuple[Lens, pb.TranscoderSet]) -> None:
    lens, sets = tiny
    test = split(open_behaviour("brackets", lens), lens.d_vocab, 4).test
    d = Dictionaries(lens, {"mlp": sets})
    nothing = torch.zeros(1, d.n, dtype=torch.bool)
    effects = d.effects(test, torch.zeros(len(test), dtype=torch.long), nothing)[0]
    # In the last layer's place a feature is linear up to the last norm: the best one's ablation has the effect's sign.
    feature = d.sites[-1].start + int(effects[d.sites[-1].start :].argmax())
    one = nothing.clone()
    one[0, feature] = True
    T = test.tokens.shape[1]
    lost = test.margins(lens.logits(test.tokens)) - d.ablated_margins(test, by_group(torch.zeros(4).long(), T, one))
    assert float(lost.sum()) == pytest.approx(float(effects[feature]), rel=0.35)


@pytest.mark.parametrize(("per_layer", "displaced"), [(5, 0.0), (14, 0.5)])
def test_random_features_are_as_many_active_ones_that_are_not_chosen(
    per_layer: int, displaced: float, tiny: tuple[Lens, pb.TranscoderSet]
) -> None:
    """At the same place where there are enough; else elsewhere in the prompt, and never in its padding."""
    lens, sets = tiny
    test = split(open_behaviour("brackets", lens), lens.d_vocab, 6).test
    T, d = test.tokens.shape[1], Dictionaries(lens, {"mlp": sets})
    acts = d.encoded(test.tokens)
    asked = torch.arange(T) == test.at[:, None]
    chosen = torch.zeros(len(test), d.n, dtype=torch.bool)
    for site in d.sites:
        for n in range(len(test)):
            ids, _ = acts[site.start].row(n * T + int(test.at[n]))
            chosen[n, site.start + ids[:per_layer].long()] = True
    everywhere = by_group(torch.arange(len(test)), T, chosen)

    def drop(site: Site, acts: SparseActivations) -> torch.Tensor:
        return everywhere(site, acts) & asked.flatten()[acts.rows()]

    picked = matched(d, test, acts, drop, torch.Generator().manual_seed(0))
    wanted, found, elsewhere = torch.zeros(len(test)), torch.zeros(len(test)), 0
    for site in d.sites:
        a = acts[site.start]
        taken = drop(site, a)
        assert bool(torch.isin(picked[site.start], places(a)[~taken]).all())
        assert len(picked[site.start].unique()) == len(picked[site.start])
        rows = picked[site.start] // a.n_features
        assert bool((rows % T <= test.at[rows // T]).all())
        wanted += torch.bincount(a.rows()[taken] // T, minlength=len(test))
        found += torch.bincount(rows // T, minlength=len(test))
        elsewhere += int((~asked.flatten()[rows]).sum())
    assert torch.equal(wanted, found)
    assert elsewhere / float(found.sum()) >= displaced
    assert (elsewhere == 0) == (displaced == 0)


def test_features_of_attention_are_ablated_beside_those_of_mlps(tiny: tuple[Lens, pb.TranscoderSet]) -> None:
    lens, sets = tiny
    W = torch.randn(64, lens.d_model, generator=torch.Generator().manual_seed(0)) / 9
    site = "hook_attn_out"
    sae = pb.Transcoder(
        W, torch.zeros(64), W, torch.zeros(lens.d_model), activation=pb.TopK(4), hook_in=site, hook_out=site
    )
    d = Dictionaries(lens, {"mlp": sets, "attention": pb.TranscoderSet({1: sae})})
    assert d.place(4 * 1024 + 7)[0].kind == "attention"
    test = split(open_behaviour("brackets", lens), lens.d_vocab, 4).test

    def attention(site: Site, acts: SparseActivations) -> torch.Tensor:
        return torch.full((acts.nnz,), site.kind == "attention")

    edit = ("blocks.1.hook_attn_out", lambda y: y - sae(y.flatten(0, 1)).view_as(y))
    expected = test.margins(lens.record(test.tokens, [], [edit])[0])
    torch.testing.assert_close(d.ablated_margins(test, attention), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, test.margins(lens.logits(test.tokens)), atol=0.1)


def test_shares_sum_to_the_margin(tiny: tuple[Lens, pb.TranscoderSet]) -> None:
    lens, sets = tiny
    test = split(open_behaviour("induction", lens), lens.d_vocab, 4).test
    shares = direct_shares(lens, sets, test)
    assert abs(shares.rest) < 0.05
    heads = sum(share for (kind, _), share in shares.layers.items() if kind == "head")
    assert sum(shares.heads.values()) == pytest.approx(heads)
    assert sum(token_shares(graph_of(lens, sets, test, 0))) == pytest.approx(1, abs=1e-3)


def test_cross_layer_features_are_refused() -> None:
    from tests import models

    lens = pb.as_lens(models.native(dtype=torch.float32))
    with pytest.raises(ValueError, match="their own layer"):
        Dictionaries(lens, {"mlp": models.random_clt(lens)})
