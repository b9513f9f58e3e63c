"""The planted model answers, its graphs are the true ones, and its features do what the truth says they do."""

from __future__ import annotations

import pytest
import torch

import pullback as pb
from pullback.attribution.nodes import FEATURE
from pullback.causal import Swap
from pullback.zoo import planted_weights as pw
from pullback.zoo.by_hand import hadamard
from pullback.zoo.exact import exact_transcoders
from pullback.zoo.planted_words import IDS

KINDS = ("two_hop", "located", "capital")
TRUTH = pb.zoo.truth("planted")


@pytest.fixture(scope="module")
def model():
    return pb.zoo.load("planted", dtype=torch.float64)


@pytest.fixture(scope="module")
def sets(model):
    return exact_transcoders(model)


def prompts(kind: str):
    return [p for p in TRUTH.prompts if p.kind == kind]


def batch(kind: str) -> torch.Tensor:
    """Prompts of one kind have one length."""
    return torch.tensor([p.tokens for p in prompts(kind)])


def answers(kind: str) -> torch.Tensor:
    return torch.tensor([IDS[p.answer] for p in prompts(kind)])


def features_of(graph: pb.Graph) -> set[tuple[int, int, int]]:
    n, mask = graph.nodes, graph.of_kind(FEATURE)
    return set(zip(n.layer[mask].tolist(), n.pos[mask].tolist(), n.feature[mask].tolist(), strict=True))


# It answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_question_is_answered_with_high_probability(dtype):
    model = pb.zoo.load("planted", dtype=dtype)
    for kind in KINDS:
        probability = pb.as_lens(model).logits(batch(kind))[:, -1].softmax(-1)
        assert float(probability.gather(1, answers(kind)[:, None]).min()) >= 0.98, kind


def test_facts_are_those_of_the_truth():
    assert len(prompts("two_hop")) == 48
    for p in prompts("two_hop"):
        capital, cities = TRUTH.states[p.state]
        assert p.answer == capital
        assert p.subject in cities
        assert TRUTH.prompt(p.text) is p
    with pytest.raises(ValueError, match="no truth for 'the capital of dallas is'"):
        TRUTH.prompt("the capital of dallas is")


def test_strings_become_the_prompts_own_tokens_and_unknown_words_are_refused(model):
    lens = pb.as_lens(model)
    for kind in KINDS:
        p = prompts(kind)[0]
        assert lens.to_tokens(p.text.upper()).tolist() == p.tokens
        assert lens.to_str_tokens(torch.tensor(p.tokens)) == ["<bos>", *p.text.split()]
    with pytest.raises(ValueError, match=r"83 words and 'paris' is not one"):
        lens.to_tokens("the capital of the state containing paris is")


# Its graphs are the true ones -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_pruned_graph_holds_every_true_edge_and_no_distractor(model, sets, kind):
    for p in prompts(kind):
        graph = pb.attribute(model, sets, p.text)
        assert graph.check() <= 1e-9
        small = graph.prune()
        assert features_of(small) == set(TRUTH.features(p)), p.text
        for (source, target), weight in TRUTH.edges(p).items():
            assert graph.edge(source, target) == pytest.approx(weight, abs=1e-10), (p.text, source, target)
            assert small.edge(source, target) == graph.edge(source, target), (p.text, source, target)


def test_pruned_graph_is_the_true_one_in_float32():
    model, sets = pb.zoo.load("planted"), pb.zoo.transcoders("planted")
    for p in prompts("two_hop")[::4]:
        graph = pb.attribute(model, sets, p.text)
        assert graph.check() <= 1e-4
        small = graph.prune()
        assert features_of(small) == set(TRUTH.features(p)), p.text
        for (source, target), weight in TRUTH.edges(p).items():
            assert small.edge(source, target) == pytest.approx(weight, abs=1e-4)


def test_both_engines_see_the_true_edges(model, sets):
    p = prompts("capital")[3]
    graph = pb.attribute(model, sets, p.text, engine="autograd")
    for (source, target), weight in TRUTH.edges(p).items():
        assert graph.edge(source, target) == pytest.approx(weight, abs=1e-10)


def test_nothing_else_of_weight_enters_the_circuit(model, sets):
    """Besides the true edges, the pruned graph's edges are each under a tenth of their target's input."""
    p = prompts("two_hop")[5]
    small = pb.attribute(model, sets, p.text).prune()
    _, edges = small.to_pandas()
    true = TRUTH.edges(p)
    for _, edge in edges.iterrows():
        is_leaf_of_target = edge.source.startswith("own_")
        if (edge.source, edge.target) not in true and not is_leaf_of_target:
            largest = max(w for (_, target), w in true.items() if target == edge.target)
            assert abs(edge.weight) <= 0.1 * largest


def test_the_graph_before_pruning_is_full_of_distractors(model, sets):
    """Pruning has something to do: every layer has active distractors at the last position, and faint ones do reach."""
    p = prompts("two_hop")[0]
    graph = pb.attribute(model, sets, p.text)
    active = features_of(graph)
    logit = f"{pw.N_LAYERS + 1}_{IDS[p.answer]}_{p.last}"
    answer = f"2_{TRUTH.answer_features[p.answer]}_{p.last}"
    for layer in range(pw.N_LAYERS):
        here = {f for at, pos, f in active if (at, pos) == (layer, p.last)}
        assert len(here & set(TRUTH.idle(layer))) >= 5
        assert set(TRUTH.faint(layer)) <= here
        for f in here & set(TRUTH.idle(layer)):
            assert abs(graph.edge(f"{layer}_{f}_{p.last}", logit)) <= 1e-12
    for f in TRUTH.faint(0):
        assert graph.edge(f"0_{f}_{p.last}", answer) == pytest.approx(pw.FAINT, abs=1e-12)
    for f in TRUTH.faint(2):
        assert abs(graph.edge(f"2_{f}_{p.last}", logit)) > 0.1


def test_nothing_is_left_to_errors(model, sets):
    scores = pb.attribute(model, sets, prompts("two_hop")[0].text).scores()
    assert min(scores) >= 1 - 1e-9


# Its parts do what the truth says -------------------------------------------------------------------------------------


def test_feature_ids_are_the_model_s_neurons():
    for layer in range(pw.N_LAYERS):
        circuit = {0: [*TRUTH.state_features.values(), *TRUTH.relation_features.values()], 1: []}.get(
            layer, list(TRUTH.answer_features.values())
        )
        assert sorted([*circuit, *TRUTH.distractors(layer)]) == list(range(pw.D_MLP))


def test_circuit_features_fire_where_they_should_and_nowhere_else(model, sets):
    lens = pb.as_lens(model)
    for kind in KINDS:
        tokens = batch(kind)
        inputs = lens.mlp_io(tokens)
        z = {i: sets.encode(i, inputs[i][0]).to_dense().view(*tokens.shape, -1) for i in (0, 2)}
        wanted = {i: torch.zeros_like(z[i]) for i in z}
        for n, p in enumerate(prompts(kind)):
            for layer, pos, feature in TRUTH.features(p):
                wanted[layer][n, pos, feature] = 0.5
        named = {
            0: [*TRUTH.state_features.values(), *TRUTH.relation_features.values()],
            2: [*TRUTH.answer_features.values()],
        }
        for i, ids in named.items():
            assert (z[i][..., ids] - wanted[i][..., ids]).abs().max() <= 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_the_two_heads_attend_to_one_token(model, kind):
    lens, tokens = pb.as_lens(model), batch(kind)
    _, seen = lens.record(tokens, ["blocks.1.attn.hook_pattern"])
    for n, p in enumerate(prompts(kind)):
        pattern = seen["blocks.1.attn.hook_pattern"][n, :, p.last]
        assert float(pattern[TRUTH.state_head[1], p.position(p.subject)]) >= 1 - 1e-12
        if p.relation == "capital":
            assert float(pattern[TRUTH.relation_head[1], p.position("capital")]) >= 1 - 1e-12


@pytest.mark.parametrize("freeze", ["attention", None])
def test_setting_another_state_flips_the_answer(model, sets, freeze):
    p = prompts("two_hop")[0]
    pos = p.position(p.subject)
    for state, (capital, _) in TRUTH.states.items():
        if state == p.state:
            continue
        change = [(0, pos, TRUTH.state_features[p.state], 0.0), (0, pos, TRUTH.state_features[state], 0.5)]
        logits = pb.intervene(model, sets, p.text, change, freeze=freeze)
        assert TRUTH.words[int(logits[-1].argmax())] == capital


def test_interchange_of_state_features_swaps_every_answer_and_of_all_others_none(model, sets):
    tokens, capitals = batch("two_hop"), answers("two_hop")
    source = (torch.arange(48) + 17) % 48  # four cities a state: always another state
    pos = prompts("two_hop")[0].position(prompts("two_hop")[0].subject)
    states = torch.zeros(pw.D_MLP, dtype=torch.bool)
    states[list(TRUTH.state_features.values())] = True
    swapped = pb.interchange(model, sets, tokens, tokens[source], [Swap.features(0, pos, states)])
    assert torch.equal(swapped.argmax(-1), capitals[source])
    others = [Swap.features(0, pos, ~states)] + [
        Swap.features(layer, pos, torch.ones(pw.D_MLP, dtype=torch.bool)) for layer in (1, 2)
    ]
    kept = pb.interchange(model, sets, tokens, tokens[source], others)
    assert torch.equal(kept.argmax(-1), capitals)


def test_ablating_idle_distractors_changes_nothing_and_faint_ones_little(model, sets):
    p = prompts("two_hop")[7]
    graph = pb.attribute(model, sets, p.text)
    before = pb.as_lens(model).logits(torch.tensor([p.tokens]))[0, -1]

    def without(which) -> torch.Tensor:
        zeros = [(i, pos, f, 0.0) for i, pos, f in features_of(graph) if f in which(i)]
        assert len(zeros) >= 20
        return pb.intervene(model, sets, p.text, zeros)[-1]

    assert (without(TRUTH.idle) - before).abs().max() <= 1e-9
    after = without(TRUTH.faint)
    assert int(after.argmax()) == IDS[p.answer]
    assert abs(float(after.softmax(-1)[IDS[p.answer]] - before.softmax(-1)[IDS[p.answer]])) <= 0.1


@pytest.mark.parametrize("which", [0, 1, 2], ids=["state", "relation", "answer"])
def test_ablating_one_circuit_feature_takes_the_answer_away(model, sets, which):
    p = prompts("two_hop")[7]
    logits = pb.intervene(model, sets, p.text, [(*TRUTH.features(p)[which], 0.0)])[-1]
    assert float(logits.softmax(-1)[IDS[p.answer]]) <= 0.1


# How it is built ------------------------------------------------------------------------------------------------------


def test_directions_are_orthonormal_and_dense():
    Q = hadamard(pw.D_MODEL)
    assert (Q @ Q.T - torch.eye(pw.D_MODEL, dtype=Q.dtype)).abs().max() <= 1e-12
    assert bool((pw.plan().state_dict()["tok_embed.weight"] != 0).all())


def test_axes_do_not_overlap():
    groups = (pw.TOKEN, pw.POSITION, pw.STATE, pw.ARRIVED, pw.RELATION, pw.CONTEXT, pw.ANSWER, pw.IDLE)
    assert [axis for group in groups for axis in group] == list(range(pw.D_MODEL))


def test_loading_is_fresh_repeatable_and_leaves_the_random_state_alone(model):
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    again = pb.zoo.load("planted", dtype=torch.float64)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert again is not model
    for ours, theirs in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
