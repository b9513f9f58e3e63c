"""What attention carries for a circuit: sums over places, scores as sums over pairs, and planted pairs on top."""

from __future__ import annotations

import json
import math

import pytest
import torch

import pullback as pb
from pullback.attribution import nodes as k
from pullback.attribution.effects import inverses
from pullback.attribution.hierarchical import Gate, attended, circuit_of
from pullback.attribution.local import local_model
from pullback.lens import as_lens
from tests import models
from tests.attribution.hierarchical.analogues import brackets, induction
from tests.attribution.test_identities import tokens_of

TOKENS = tokens_of(5)
PLANTED = [
    (induction, "a b c d a", "b", (1, 0, 5, 2), ("word a", "behind a")),
    (induction, "e k a c f k", "a", (1, 0, 6, 3), ("word k", "behind k")),
    (brackets, "( x [ y", "]", (1, 0, 4, 3), ("deep", "deep")),
    (brackets, "[ ( x ) y ( z", ")", (1, 0, 7, 6), ("deep", "deep")),
]


@pytest.mark.parametrize(("make", "text", "answer", "place", "pair"), PLANTED)
def test_the_planted_head_and_its_pair_are_on_top(make, text: str, answer: str, place, pair) -> None:
    model = make()
    tokens, token = model.tokens(f"<bos> {text}"), model.words.index(answer)
    found = pb.hierarchical(model.lens, model.sets, tokens, token, tau=0.05, relative=True)
    (first, *rest) = found.attention(model.lens, model.sets).attended
    assert first.place == place
    value = float(found.whole.nodes.preactivation[found.target])
    assert first.carried / value > 0.95
    assert sum(abs(one.carried) for one in rest) < 1e-9 * value
    source, target, carried = first.edges[0]
    assert carried == pytest.approx(first.carried, rel=1e-9)
    assert {source, target} <= set(found.graph.node_ids())
    _, _, query, key = place
    names = tuple(model.node(0, name, pos) for name, pos in zip(pair, (query, key), strict=True))
    top = first.qk.top_pairs(1)[0]
    assert top[:2] == names
    assert top[2] == first.to_dict()["pairs"][0]["value"] > 0.8 * first.qk.score > 30
    assert float((first.qk.query.vectors @ first.qk.key.vectors.T).sum()) == pytest.approx(first.qk.score, abs=1e-9)


@pytest.mark.parametrize(("make", "text", "answer", "place", "pair"), PLANTED[:2])
def test_with_the_pair_the_circuit_finds_its_way_by_itself(make, text: str, answer: str, place, pair) -> None:
    """Patterns live: the circuit alone looks elsewhere; with the two features that the score is made of, not."""
    model = make()
    tokens, token = model.tokens(f"<bos> {text}"), model.words.index(answer)
    found = pb.hierarchical(model.lens, model.sets, tokens, token, tau=0.05, relative=True)
    (query, key, _) = found.attention(model.lens, model.sets, top=1).attended[0].qk.top_pairs(1)[0]
    more = found.kept.clone()
    more[found.whole.places([query, key])] = True
    alone, with_pair = (
        pb.circuit_faithfulness(model.lens, model.sets, found.whole, keep, measure=pb.Margin(token), freeze=None)
        for keep in (found.kept, more)
    )
    assert alone < 0.5
    assert with_pair > 0.95


@pytest.mark.parametrize("with_saes", [False, True])
@pytest.mark.parametrize("name", ["LN-gqa-standard-plain", "RMS-mha-rotary-gated", "llama", "neox-parallel"])
def test_places_and_what_goes_through_no_head_are_the_circuit(name: str, with_saes: bool) -> None:
    """Every unit that comes into a node is worth the same: summed over edges, places and bypass give all of it."""
    lens = as_lens(models.build(name))
    sets = models.random_set(lens)
    also = {"attention_saes": models.random_saes(lens, layers=[0, 2])} if with_saes else {}
    found = pb.hierarchical(lens, sets, TOKENS, 4, tau=0.05, mode="abs", relative=True, **also)
    assert bool(found.graph.of_kind(k.ATTENTION_FEATURE).any()) == with_saes
    graph, ids = found.graph, found.graph.node_ids()
    own = graph.of_kind(k.OWN)[graph.sources.long()]
    worth = (found.attribution[found.kept] * inverses(graph))[graph.rows()]
    edges = [(ids[s], ids[t]) for s, t in zip(graph.sources.tolist(), graph.rows().tolist(), strict=True)]
    named = [edge for edge, is_own in zip(edges, own.tolist(), strict=True) if not is_own]
    split = pb.head_loadings(lens, sets, TOKENS, named, **also)
    places = attended(lens, sets, found, top=10**6, edges=10**6, **also)
    carried = sum(one.carried for one in places)
    assert carried + float(split.bypass @ worth[~own]) == pytest.approx(float((graph.weights * worth)[~own].sum()))
    assert [abs(one.carried) for one in places] == sorted((abs(one.carried) for one in places), reverse=True)
    for one in places[:3]:
        assert sum(value for _, _, value in one.edges) == pytest.approx(one.carried, abs=1e-10)
        assert all(target.endswith(f"_{one.place.query_pos}") for _, target, _ in one.edges)
        assert one.qk.check() <= 1e-12
        assert float((one.qk.query.vectors @ one.qk.key.vectors.T).sum()) == pytest.approx(one.qk.score, abs=1e-9)
        again = pb.qk_attribution(lens, sets, TOKENS, *one.place, **also)
        assert (again.score, again.pattern) == (one.qk.score, one.qk.pattern)
    for one in attended(lens, sets, found, top=3, rival=True, **also):
        row = local_model(lens, sets, TOKENS).trace.layers[one.place.layer].pattern[one.place.head, one.place.query_pos]
        others = [n for n in range(one.place.query_pos + 1) if n != one.place.key_pos]
        if not others:
            assert one.qk.against is None
            continue
        assert one.qk.against == max(others, key=lambda n: float(row[n]))
        ratio = float((row[one.place.key_pos] / row[one.qk.against]).log())
        assert one.qk.score == pytest.approx(ratio, abs=1e-5)  # softmax may run in float32
        assert one.qk.check() <= 1e-12
    few = attended(lens, sets, found, top=2, edges=1, **also)
    assert [one.place for one in few] == [one.place for one in places[:2]]
    assert [one.edges for one in few] == [one.edges[:1] for one in places[:2]]


def test_differences_and_directions_are_followed_as_they_were_asked_for() -> None:
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    sets = models.random_set(lens)
    difference = pb.LogitDifference((4, 9))
    found = pb.hierarchical(lens, sets, TOKENS, difference, tau=-math.inf)
    # The same functional of the stream that ln_final gives, as a direction.
    vector = lens.W_U[:, 4] - lens.W_U[:, 9]
    other = pb.hierarchical(lens, sets, TOKENS, pb.DirectionTarget(vector), tau=-math.inf)
    ours, theirs = (
        {one.place: one.carried for one in attended(lens, sets, circuit, top=20)} for circuit in (found, other)
    )
    assert ours.keys() == theirs.keys()
    assert all(theirs[place] == pytest.approx(value, rel=1e-9) for place, value in ours.items())
    bare = circuit_of(found.whole, gate=Gate(-math.inf))
    with pytest.raises(ValueError, match=r"does not hold the vector of D_0_4; give target="):
        attended(lens, sets, bare)
    named = attended(lens, sets, bare, target=difference, top=20)
    assert {one.place: one.carried for one in named} == ours
    with pytest.raises(ValueError, match="is not what this graph explains as D_0_4"):
        attended(lens, sets, bare, target=4)
    between = pb.hierarchical(lens, sets, TOKENS, pb.DirectionTarget(vector, "blocks.1.hook_resid_pre"))
    with pytest.raises(ValueError, match="not between two blocks"):
        attended(lens, sets, between)
    with pytest.raises(ValueError, match="must be at least 1, got 0 and 5"):
        attended(lens, sets, found, top=0)


def test_they_stand_in_the_json() -> None:
    model = induction()
    tokens = model.tokens("<bos> a b c d a")
    found = pb.hierarchical(model.lens, model.sets, tokens, model.words.index("b"), tau=0.05, relative=True)
    assert "attention" not in json.loads(found.to_json())
    told = json.loads(found.attention(model.lens, model.sets, top=1).to_json())["attention"]
    assert [(one["layer"], one["head"], one["query_pos"], one["key_pos"]) for one in told] == [(1, 0, 5, 2)]
    assert told[0]["check"] < 1e-12
    assert [set(pair) for pair in told[0]["pairs"]] == [{"query", "key", "value"}] * 5
    assert torch.tensor([pair["value"] for pair in told[0]["pairs"]]).abs().diff().max() <= 0
