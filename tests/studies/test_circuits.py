"""The circuit of one prompt: on a model whose circuit is known, and against the definitions on tiny-mix."""

from __future__ import annotations

import pytest
import torch

import pullback as pb
from pullback.attribution.attention.components import components
from pullback.attribution.local import local_model
from pullback.studies import (
    Brackets,
    Dictionaries,
    IndirectObjects,
    feature_shares,
    graph_of,
    head_shares,
    margin_circuit,
    only,
    removal,
    split,
    typical,
)
from pullback.studies.circuits import readers
from tests.studies.capitals import Capitals


def test_on_planted_features_and_heads_are_those_of_the_circuit() -> None:
    lens, sets = pb.as_lens(pb.zoo.load("planted")), pb.zoo.transcoders("planted")
    capitals = Capitals(lens)
    prompts = split(capitals, lens.d_vocab, 12, per_key=2).test
    truth = capitals.truth
    for row, state in enumerate(prompts.keys[:4]):
        circuit = margin_circuit(graph_of(lens, sets, prompts, row), tau=0.05)  # above the idle neurons
        wanted = {(0, truth.relation_features["capital"]), (0, truth.state_features[state])}
        wanted.add((2, truth.answer_features[truth.states[state][0]]))
        features = feature_shares(circuit)
        assert {(layer, feature) for layer, _, feature in features} == wanted
        heads = head_shares(lens, sets, circuit, prompts.wanted[row])
        assert set(list(heads)[:2]) == {truth.state_head, truth.relation_head}
        _, second, third, *_ = heads.values()  # the third adds up context
        assert second > 0.95
        assert third < second / 4
        dictionaries = Dictionaries(lens, {"mlp": sets})
        found = removal(dictionaries, prompts[row : row + 1], only(dictionaries, features), draws=3)
        assert found.holds
        # The answer's feature is what the others lead to, and the model has no norm: ablation takes just its share.
        assert found.dropped == pytest.approx(next(share for place, share in features.items() if place[0] == 2), 1e-4)


@pytest.mark.parametrize("behaviour", [IndirectObjects, Brackets])
def test_with_nothing_cut_a_head_of_the_last_layer_carries_what_it_writes(behaviour: type) -> None:
    lens, sets = pb.as_lens(pb.zoo.load("tiny-mix")), pb.zoo.transcoders("tiny-mix")
    prompts = split(behaviour(lens), lens.d_vocab, 2).test
    circuit = margin_circuit(graph_of(lens, sets, prompts, 0), tau=-torch.inf)
    shares = head_shares(lens, sets, circuit, prompts.wanted[0])
    local = local_model(lens, sets, prompts.row(0))
    t, top = local.trace, lens.n_layers - 1
    # What the margin has of a unit at attention's output: read by the last norm, and by features of the last layer.
    reading = t.ln_final.pullback((lens.W_U @ prompts.wanted[0])[None], t.final_scale[-1:])[0]
    for (layer, pos, feature), share in feature_shares(circuit).items():
        if (layer, pos) == (top, t.n_pos - 1):
            row = t.layers[top].read_pullback(sets.hook_in(top), sets.encoder_rows(top, [feature]), torch.tensor([pos]))
            ids, _ = local.acts[top].row(pos)
            start = int(local.acts[top].indptr[pos])
            h = local.acts[top].values[start + int((ids == feature).nonzero())]
            reading = reading + share * float(t.logits[-1] @ prompts.wanted[0]) / h * row[0]
    parts = components(local, lens.n_layers, t.n_pos - 1)
    for name, vector in zip(parts.names, parts.vectors, strict=True):
        if name.startswith(f"{top}_head"):
            wrote = float(vector @ reading / (t.logits[-1] @ prompts.wanted[0]))
            assert shares[top, int(name.split("_")[2])] == pytest.approx(wrote, abs=1e-4)


def test_typical_prompts_have_different_keys_and_margins_near_the_mean() -> None:
    lens = pb.as_lens(pb.zoo.load("tiny-mix"))
    prompts = split(IndirectObjects(lens), lens.d_vocab, 40).test
    margins = prompts.margins(lens.logits(prompts.tokens))
    far = (margins - margins.mean()).abs()
    rows = typical(lens, prompts, 5)
    assert rows[0] == int(far.argmin())
    assert len({prompts.keys[row] for row in rows}) == 5
    assert float(far[rows].max()) <= float(far.median())
    assert len(typical(lens, prompts, 99)) == len(set(prompts.keys))


def test_a_feature_reads_through_the_head_that_brings_most() -> None:
    lens, sets = pb.as_lens(pb.zoo.load("tiny-mix")), pb.zoo.transcoders("tiny-mix")
    prompts = split(IndirectObjects(lens), lens.d_vocab, 8).test
    graph = graph_of(lens, sets, prompts, 0)
    circuit = margin_circuit(graph)
    through = readers(lens, sets, circuit)
    last = int(prompts.at[0])
    moved = {place: head for place, head in through.items() if place[1] == last}
    assert moved, "names come to the last token through heads"
    assert {place[0] for place in through} == {0}
    assert set(through) <= set(feature_shares(circuit))
    place, head = next(iter(moved.items()))
    kept = [s for s, k in zip(graph.node_ids(), circuit.kept.tolist(), strict=True) if k and s[0] in "E0"]
    name = f"0_{place[2]}_{place[1]}"
    edges = [(s, name) for s in kept if s.startswith("E") or "bias_attn" in s]
    sums = pb.head_loadings(lens, sets, prompts.row(0), edges).heads[:, 0].sum(0)
    assert head == (0, int(sums.argmax()))
