"""A ReLU model is its own transcoder: nothing is left over, and other models are refused."""

from __future__ import annotations

import pytest
import torch

import pullback as pb
from pullback.attribution.nodes import ERROR
from pullback.zoo.exact import exact_transcoders
from tests import models

WIRINGS = {
    "no norm": {"normalization_type": None},
    "LN": {"normalization_type": "LN"},
    "LNPre": {"normalization_type": "LNPre"},
    "RMS, rotary, grouped": {
        "normalization_type": "RMS",
        "positional_embedding_type": "rotary",
        "n_key_value_heads": 2,
    },
    "RMSPre": {"normalization_type": "RMSPre"},
}
PROMPTS = ([7], [3, 3, 3], [1, 60, 22, 9, 41, 5, 17, 33])


def relu(**overrides):
    return models.native(act_fn="relu", **overrides)


def error_share(graph: pb.Graph) -> float:
    """Edge mass from error nodes against all edge mass."""
    size = graph.weights.abs()
    return float(size[graph.of_kind(ERROR)[graph.sources.long()]].sum() / size.sum())


def cross_entropy(lens: pb.Lens, tokens: torch.Tensor) -> float:
    logits = lens.logits(tokens)[:, :-1]
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))


def random_tokens(lens: pb.Lens, n: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, lens.d_vocab, (n, lens.n_ctx), generator=generator)


# The model that ships -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_graph_has_no_errors_and_full_scores(prompt):
    model, sets = pb.zoo.load("exact", dtype=torch.float64), pb.zoo.transcoders("exact", dtype=torch.float64)
    graph = pb.attribute(model, sets, prompt)
    assert graph.check() <= 1e-9
    assert error_share(graph) <= 1e-10
    assert min(graph.scores()) >= 1 - 1e-9
    assert min(graph.scores(bias=True)) >= 1 - 1e-9
    assert max(graph.scores()) <= 1 + 1e-9


def test_graph_in_float32():
    graph = pb.attribute(pb.zoo.load("exact"), pb.zoo.transcoders("exact"), PROMPTS[-1])
    assert graph.check() <= 1e-4
    assert error_share(graph) <= 1e-5
    assert min(graph.scores()) >= 1 - 1e-4


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-9)])
def test_replacing_every_mlp_changes_no_loss(dtype, tolerance):
    lens = pb.as_lens(pb.zoo.load("exact", dtype=dtype))
    tokens = random_tokens(lens)
    original = cross_entropy(lens, tokens)
    with lens.replace(pb.zoo.transcoders("exact", dtype=dtype)):
        replaced = cross_entropy(lens, tokens)
    assert abs(replaced - original) <= tolerance * max(1.0, original)


def test_evaluation_finds_the_true_figures():
    model, sets = pb.zoo.load("exact", dtype=torch.float64), pb.zoo.transcoders("exact", dtype=torch.float64)
    truth = pb.zoo.truth("exact")
    report = pb.evaluate(model, sets, random_tokens(pb.as_lens(model)))
    assert max(report.fvu.values()) == pytest.approx(truth["fvu"], abs=1e-12)
    assert report.ce_recovered == pytest.approx(truth["ce_recovered"], abs=1e-9)
    assert report.kl == pytest.approx(truth["kl"], abs=1e-9)


# Any ReLU model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wiring", WIRINGS)
def test_every_wiring_is_its_own_transcoder(wiring):
    model = relu(**WIRINGS[wiring])
    lens, sets = pb.as_lens(model), exact_transcoders(model)
    graph = pb.attribute(model, sets, [4, 9, 30, 2, 11])
    assert graph.check() <= 1e-9
    assert error_share(graph) <= 1e-10
    assert min(graph.scores()) >= 1 - 1e-9
    tokens = random_tokens(lens, 4)
    original = lens.logits(tokens)
    with lens.replace(sets):
        assert (lens.logits(tokens) - original).abs().max() <= 1e-9


def test_rows_are_the_neurons_and_the_weights_are_copies():
    model = relu()
    sets = exact_transcoders(pb.as_lens(model))
    mlp = model.requires_grad_(False).blocks[1].mlp
    assert torch.equal(sets[1].W_enc, mlp.W_in.T)
    assert torch.equal(sets[1].W_dec, mlp.W_out)
    assert torch.equal(sets[1].b_enc, mlp.b_in)
    assert torch.equal(sets[1].b_dec, mlp.b_out)
    sets[1].W_dec.data.zero_()
    assert float(mlp.W_out.abs().max()) > 0


def test_reading_ties_the_set_to_its_model():
    sets = exact_transcoders(relu(seed=0))
    with pytest.raises(ValueError, match="other weights"):
        pb.as_lens(relu(seed=1)).check(sets)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        ({"act_fn": "gelu"}, "its MLPs use gelu"),
        ({"act_fn": "silu", "gated_mlp": True}, "its MLPs are gated"),
        ({"act_fn": "relu", "gated_mlp": True}, "its MLPs are gated"),
    ],
)
def test_other_mlps_are_refused(overrides, why):
    with pytest.raises(ValueError, match=why):
        exact_transcoders(models.native(**overrides))


def test_a_configuration_that_lies_is_found_out():
    model = models.native(act_fn="gelu")
    model.cfg.act_fn = "relu"
    with pytest.raises(ValueError, match="misses the MLP of layer 0"):
        exact_transcoders(model)


# The registry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", [pb.zoo.load, pb.zoo.transcoders, pb.zoo.truth])
def test_unknown_names_are_refused_with_the_known_ones(ask):
    with pytest.raises(ValueError, match="no model 'gpt-5'; there are exact, planted, tiny-mix"):
        ask("gpt-5")


@pytest.mark.parametrize("name", pb.zoo.NAMES)
def test_every_name_loads_a_fresh_model_of_the_dtype_asked_for(name):
    first, second = pb.zoo.load(name), pb.zoo.load(name, dtype=torch.float64)
    assert pb.as_lens(first).dtype == torch.float32
    assert pb.as_lens(second).dtype == torch.float64
    assert first is not second
    assert pb.zoo.truth(name)


@pytest.mark.parametrize("name", pb.zoo.NAMES)
def test_transcoders_fit_their_model(name):
    pb.as_lens(pb.zoo.load(name)).check(pb.zoo.transcoders(name))


def test_loading_leaves_the_random_state_alone_and_repeats():
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first, second = pb.zoo.load("exact"), pb.zoo.load("exact")
    assert torch.equal(torch.random.get_rng_state(), state)
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)
