"""Architecture families: the same interventions, scores and edges where norms stand behind attention and MLP, logits
and attention scores are capped, queries and keys are normed, or one norm serves both halves of a block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pullback as pb
from pullback.attribution.local import local_model
from pullback.attribution.nodes import ATTENTION_FEATURE, FEATURE, LOGIT
from pullback.causal import CircuitRunner, Margin, NodeSet, Swap, interchange, predicted, run_interventions
from pullback.causal.edges import EDGE_METHODS
from pullback.causal.edges.methods import Pairs
from pullback.causal.gradients import output_gradients
from pullback.causal.scores.methods import METHODS, Problem
from pullback.causal.scores.patches import Patches
from pullback.causal.scores.relevance import relevance_edits, relevance_margin
from pullback.lens import as_lens
from pullback.lens.freeze import Freeze
from tests import families, models
from tests.causal.exact import nearly, prompts

TOKENS, OTHER = prompts(2, 6, seed=1)
MARGIN = Margin(3, 7)
FAMILIES = ["qwen3", "gemma2", "gemma3", "olmo2", "phi", "falcon"]
FREEZES = ["attention", "all", None]


def setting(name: str, draw: Any = models.random_set) -> tuple[Any, Any]:
    lens = as_lens(families.build(name))
    return lens, draw(lens, skip=True)


def active(lens: Any, sets: Any, layer: int, pos: int) -> tuple[int, float]:
    x, _ = lens.mlp_io(TOKENS[None], [layer])[layer]
    ids, values = sets.encode(layer, x[0]).row(pos)
    return int(ids[0]), float(values[0])


def patched(lens: Any, layer: int, pos: int, change: Tensor, tokens: Tensor = TOKENS) -> Tensor:
    def add(_x: Tensor, y: Tensor) -> Tensor:
        y = y.clone()
        y[:, pos] += change
        return y

    with lens.patch_mlp({layer: add}):
        return lens.logits(tokens[None])[0]


@pytest.mark.parametrize("draw", [models.random_set, models.random_clt])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_there_already_changes_nothing(name: str, draw: Any) -> None:
    """No intervention, present values, the same prompt's features, and a circuit of all nodes."""
    lens, sets = setting(name, draw)
    plain = lens.logits(TOKENS[None])[0]
    present = [(layer, 3, *active(lens, sets, layer, 3)) for layer in range(3)]
    for freeze in FREEZES:
        for wanted in ([], present):
            assert torch.allclose(pb.intervene(lens, sets, TOKENS, wanted, freeze=freeze), plain, atol=1e-9)
    swaps = [Swap.features(layer, 3, torch.ones(40, dtype=torch.bool)) for layer in range(3)]
    assert torch.allclose(interchange(lens, sets, TOKENS[None], TOKENS[None], swaps)[0], plain[-1], atol=1e-9)
    runner = CircuitRunner(lens, sets, TOKENS, NodeSet.active(lens, sets, TOKENS))
    assert torch.allclose(runner.logits(torch.ones(len(runner.nodes), dtype=torch.bool)), plain, atol=1e-9)


@pytest.mark.parametrize("draw", [models.random_set, models.random_clt])
@pytest.mark.parametrize("name", FAMILIES)
def test_constrained_patching_is_what_the_edges_say(name: str, draw: Any) -> None:
    """Of every feature downstream its pre-activation, of every logit its demeaned value before a soft cap."""
    lens, sets = setting(name, draw)
    saes = models.random_saes(lens, layers=[1])
    graph = pb.attribute(lens, sets, TOKENS, max_n_logits=3, attention_saes=saes)
    of_mlps, of_attention, logits = (
        graph.of_kind(kind).nonzero()[:, 0] for kind in (FEATURE, ATTENTION_FEATURE, LOGIT)
    )
    nodes, V = graph.nodes, lens.d_vocab
    for node in [*of_mlps[nodes.layer[of_mlps] < 2][::25].tolist(), *of_attention[::12].tolist()]:
        layer, pos, f, kind = (int(column[node]) for column in (nodes.layer, nodes.pos, nodes.feature, nodes.kind))
        one = pb.FeatureTarget(layer, pos, f, attention=kind == ATTENTION_FEATURE)
        wanted = [(one, float(nodes.activation[node]) + 2.0)]
        given: Any = {"freeze": None, "constrained_layers": range(3), "attention_saes": saes}
        after = run_interventions(lens, sets, TOKENS, wanted, **given)
        foretold = predicted(graph, node, 2.0, holding=range(3))
        for dictionaries, read, found in ((sets, after.inputs, of_mlps), (saes, after.attention, of_attention)):
            for other in found[nodes.depth[found] > nodes.depth[node]].tolist():
                i, number = int(nodes.layer[other]), int(nodes.feature[other])
                h = read[i][int(nodes.pos[other])] @ dictionaries[i].W_enc[number] + dictionaries[i].b_enc[number]
                assert float(h - nodes.preactivation[other]) == pytest.approx(float(foretold[other]), abs=1e-9)
        raw = lens.uncapped(after.logits[-1])
        moved = (raw - raw.sum() / V)[nodes.feature[logits].long()] - nodes.preactivation[logits]
        assert torch.allclose(moved, foretold[logits], atol=1e-9)
        assert bool(foretold[of_mlps].any())


@pytest.mark.parametrize("name", FAMILIES)
def test_zero_ablation_is_a_patch_behind_the_last_norm_of_the_mlp(name: str) -> None:
    """What a feature writes is added where the stream is, whatever norms its MLP's own output went through."""
    lens, sets = setting(name)
    f, z = active(lens, sets, 1, 3)
    expected = patched(lens, 1, 3, -z * sets[1].W_dec[f])
    assert not torch.allclose(expected, lens.logits(TOKENS[None])[0], atol=1e-3)
    assert torch.allclose(pb.intervene(lens, sets, TOKENS, [(1, 3, f, 0.0)], freeze=None), expected, atol=1e-9)
    assert torch.allclose(pb.ablate(lens, sets, TOKENS, [(1, 3, f)], freeze=None), expected, atol=1e-9)
    steered = pb.steer(lens, sets, TOKENS, [(1, 3, f)], [1.0, 0.0], freeze=None)
    assert torch.allclose(steered.logits[1], expected[-1], atol=1e-9)


@pytest.mark.parametrize("name", FAMILIES)
def test_generation_is_intervention_token_by_token(name: str) -> None:
    lens, sets = setting(name)
    ours = pb.generate(lens, sets, TOKENS, [(1, slice(4, None), 7, 6.0)], max_new_tokens=3, stop_at_eos=False)
    text = TOKENS
    for logits in ours.logits:
        by_hand = pb.intervene(lens, sets, text, [(1, p, 7, 6.0) for p in range(4, len(text))])[-1]
        assert torch.equal(logits, by_hand)
        text = torch.cat([text, by_hand.argmax()[None]])


STEP = 1e-3  # transformers computes patterns in float32: smaller steps drown in its rounding


@pytest.mark.parametrize("name", FAMILIES)
def test_node_scores_are_the_derivative_of_patching(name: str) -> None:
    lens, sets = setting(name)
    saes = models.random_saes(lens, layers=[1])
    local = local_model(lens, sets, TOKENS, attention_saes=saes)
    nodes = NodeSet.active(lens, sets, TOKENS, attention_saes=saes)
    same = pb.Ablation.resample(lens, sets, TOKENS, attention_saes=saes)

    def scores(method: str, step: float) -> Tensor:
        ablation = nearly(same, step)
        patches = Patches(local, nodes, ablation)
        problem = Problem(lens, local, patches, ablation, MARGIN, Freeze.of(3, None), 1, batch_size=64)
        return METHODS[method](problem) / step

    slope = (scores("exact", STEP) + scores("exact", -STEP)) / 2
    eap = scores("eap", STEP)
    for which in (nodes.attention, ~nodes.attention):
        assert torch.allclose(eap[which], slope[which], atol=2e-3 * float(slope[which].abs().max()))


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "olmo2", "phi"])
def test_edge_scores_are_the_derivative_of_patching(name: str) -> None:
    lens = as_lens(families.build(name))

    class Small(Pairs):
        step = 1.0

        def differences(self) -> Tensor:
            return self.step * super().differences()

    pairs = Small(lens, TOKENS[None], OTHER[None], torch.tensor([3]), torch.tensor([7]), 5, 64)
    eap = EDGE_METHODS["eap"](pairs)
    slopes = []
    for step in (STEP, -STEP):
        Small.step = step
        slopes.append(EDGE_METHODS["exact"](pairs) / step)
    slope = (slopes[0] + slopes[1]) / 2
    assert float(slope.abs().max()) > 1e-2
    assert torch.allclose(eap, slope, atol=2e-3 * float(slope.abs().max()))


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "gemma3", "olmo2"])
def test_heads_and_mlps_write_the_stream(name: str) -> None:
    """These have no biases: heads behind the norm of their sum, and all the rest, add up."""
    lens = as_lens(families.build(name))
    seen = Pairs(lens, TOKENS[None], OTHER[None], torch.tensor([3]), torch.tensor([7]), 5, 64).see(TOKENS[None])
    assert torch.allclose(seen.outputs().sum(0), seen.at["blocks.2.hook_resid_post"], atol=1e-9)


def without_biases(name: str) -> Any:
    model = families.build.__wrapped__(name)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                parameter.zero_()
    return as_lens(model)


@pytest.mark.parametrize("name", FAMILIES)
def test_relevance_is_conserved(name: str) -> None:
    lens = without_biases(name)
    plain = MARGIN(lens.logits(TOKENS[None]))
    measure = relevance_margin(lens, MARGIN)
    values, relevance, seen = output_gradients(
        lens, TOKENS[None], {0: "hook_embed"}, measure, edits=relevance_edits(lens), sites=["hook_embed"]
    )
    assert torch.allclose(values, plain, atol=1e-9)
    assert float((relevance[0] * seen["hook_embed"]).sum()) == pytest.approx(float(plain), rel=1e-9)


@pytest.mark.parametrize("name", families.DELEGATED)
def test_what_hooks_on_patterns_cannot_hold_is_refused(name: str) -> None:
    lens = as_lens(families.build(name))
    sets = models.random_set(lens)
    graph = pb.attribute(lens, sets, TOKENS)
    for options in ({"methods": ["relp"]}, {"methods": ["eap"], "freeze": "attention"}):
        with pytest.raises(ValueError, match="the attention pattern of layer 0 did not stay frozen"):
            pb.node_scores(lens, sets, graph, **options)
    assert torch.isfinite(pb.node_scores(lens, sets, graph, methods=["eap"]).scores["eap"]).all()


def test_mixtures_of_experts_have_no_relevance() -> None:
    lens, sets = setting("mixtral")
    with pytest.raises(
        ValueError, match=r"relp: .* has no hook 'blocks\.0\.mlp\.hook_pre.*mixtures of experts.*use eap"
    ):
        pb.node_scores(lens, sets, pb.attribute(lens, sets, TOKENS), methods=["relp"])
