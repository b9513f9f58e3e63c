"""Node scores against finite differences, against each other where they must agree, and against conservation laws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pullback as pb
from pullback.attribution.local import local_model
from pullback.causal import Margin, NodeSet, margin_of
from pullback.causal.gradients import output_gradients
from pullback.causal.scores.methods import METHODS, Problem, eap_ig_activations
from pullback.causal.scores.patches import Patches
from pullback.causal.scores.relevance import relevance_edits
from pullback.lens import as_lens
from pullback.lens import record as rec
from pullback.lens.freeze import Freeze
from tests import models
from tests.causal.exact import exact_saes, nearly, prompts
from tests.causal.test_agreement import linear_model

TOKENS, OTHER = prompts(2, 6, seed=1)
WIRINGS = ["LN-gqa-standard-plain", "RMS-gqa-rotary-gated", "neox-parallel"]


def problem(
    lens: Any, sets: Any, ablation: Any, steps: int = 5, freeze: str | None = None, saes: Any = None
) -> Problem:
    local = local_model(lens, sets, TOKENS, attention_saes=saes)
    nodes = NodeSet.active(lens, sets, TOKENS, attention_saes=saes)
    patches = Patches(local, nodes, ablation)
    return Problem(lens, local, patches, ablation, Margin(3, 7), Freeze.of(3, freeze), steps, batch_size=50)


@pytest.mark.parametrize(("steps", "at_attention"), [(1, []), (3, []), (2, [1]), (2, [0, 1, 2])])
def test_where_the_model_is_linear_all_methods_agree(steps: int, at_attention: list[int]) -> None:
    """EAP = exact for every m, and the graph's own effects are the same numbers once more."""
    lens, sets = linear_model()
    saes = exact_saes(lens, layers=at_attention) if at_attention else None
    graph = pb.attribute(lens, sets, TOKENS, attention_saes=saes)
    given: Any = {"steps": steps, "freeze": "attention", "batch_size": 100, "attention_saes": saes}
    found = pb.node_scores(lens, sets, graph, **given)
    assert list(found.scores) == ["graph", *METHODS]
    exact = found.scores["exact"]
    assert float(exact.abs().max()) > 0.1
    for name, scores in found.scores.items():
        assert torch.allclose(scores, exact, atol=1e-8 * float(exact.abs().max())), name


@pytest.mark.parametrize("draw", [models.random_set, models.random_clt])
@pytest.mark.parametrize("name", WIRINGS)
def test_exact_scores_are_interventions(name: str, draw: Any) -> None:
    lens = as_lens(models.build(name))
    sets, saes = draw(lens), models.random_saes(lens, layers=[0, 1])
    ablation = pb.Ablation.resample(lens, sets, OTHER, attention_saes=saes)
    scores = METHODS["exact"](problem(lens, sets, ablation, saes=saes))
    nodes, margin = NodeSet.active(lens, sets, TOKENS, attention_saes=saes), Margin(3, 7)
    clean = margin(lens.logits(TOKENS[None]))[0]
    local = local_model(lens, sets, TOKENS, attention_saes=saes)
    for n in [*range(0, len(nodes), 29), len(nodes) - 1]:
        layer, pos, feature = nodes.places()[n]
        attention = bool(nodes.attention[n])
        if feature >= 0:
            one = pb.FeatureTarget(layer, pos, feature, attention=attention)
            after = pb.ablate(lens, sets, TOKENS, [one], ablation, freeze=None, attention_saes=saes)
        else:
            there, here = (ablation.attention, local.attention) if attention else (ablation, local)

            def swap(
                y: Tensor, pos: int = pos, change: Tensor = (there.errors[layer] - here.errors[layer])[pos]
            ) -> Any:
                y = y.clone()
                y[0, pos] += change
                return y

            site = f"blocks.{layer}.hook_{'attn' if attention else 'mlp'}_out"
            after = lens.record(TOKENS[None], [], [(site, swap)])[0][0]
        assert float(scores[n]) == pytest.approx(float(clean - margin(after)), abs=1e-9)


@pytest.mark.parametrize("draw", [models.random_set, models.random_clt])
@pytest.mark.parametrize("name", WIRINGS)
def test_attribution_patching_is_the_gradient_by_activations(name: str, draw: Any) -> None:
    """Every activation and error a variable of the model with dictionaries inserted, by autograd."""
    lens = as_lens(models.build(name))
    sets, saes = draw(lens), models.random_saes(lens)
    ablation = pb.Ablation.mean(lens, sets, [OTHER, TOKENS], attention_saes=saes)
    p = problem(lens, sets, ablation, saes=saes)
    kinds = [(sets, p.local.acts, dict(enumerate(p.local.errors)), ablation, "mlp")]
    kinds += [(saes, p.local.attention.acts, p.local.attention.errors, ablation.attention, "attn")]
    edits, expected = [], []
    variables: dict[tuple[bool, bool, int], tuple[Tensor, Tensor]] = {}  # what they are, less what they would be
    for attention, (dictionaries, acts, errors, there, hook) in enumerate(kinds):
        for i in range(3):
            z, e = acts[i].to_dense().requires_grad_(), errors[i].clone().requires_grad_()
            variables[bool(attention), False, i] = z, (z - there.acts[i].to_dense()).detach()
            variables[bool(attention), True, i] = e, (e - there.errors[i]).detach()

        def at(dst: int, attention: bool = bool(attention), dictionaries: Any = dictionaries) -> Any:
            def edit(y: Tensor) -> Tensor:
                e = variables[attention, True, dst][0]
                for src in dictionaries.sources(dst):
                    z = variables[attention, False, src][0]
                    y = y + (z - z.detach()) @ dictionaries.decoder(src, dst)[:]
                return y + e - e.detach()

            return edit

        edits += [(f"blocks.{i}.hook_{hook}_out", at(i)) for i in range(3)]
    with torch.enable_grad():
        logits, _ = rec.record(lens.model, TOKENS[None], [], [*lens.exact_edits, *edits])
        p.margin(logits)[0].backward()
    nodes = NodeSet.active(lens, sets, TOKENS, attention_saes=saes)
    for (layer, pos, feature), attention in zip(nodes.places(), nodes.attention.tolist(), strict=True):
        variable, change = variables[attention, feature < 0, layer]
        gained = variable.grad[pos] * change[pos]
        expected.append(gained.sum() if feature < 0 else gained[feature])
    assert torch.allclose(METHODS["eap"](p), torch.stack(expected), atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_features_of_attention_change_nothing_of_other_scores(method: str) -> None:
    lens = as_lens(models.build("RMS-gqa-rotary-gated"))
    sets, saes = models.random_set(lens, skip=True), models.random_saes(lens)
    alone = problem(lens, sets, pb.Ablation.resample(lens, sets, OTHER))
    both = problem(lens, sets, pb.Ablation.resample(lens, sets, OTHER, attention_saes=saes), saes=saes)
    at_attention = NodeSet.active(lens, sets, TOKENS, attention_saes=saes).attention
    scores = METHODS[method](both)
    assert torch.allclose(scores[~at_attention], METHODS[method](alone), atol=1e-12)
    assert float((scores[at_attention] != 0).double().mean()) > 0.6, "the last layer's reach the answer at its position"


@pytest.mark.parametrize("at_attention", [[], [0, 2]])
@pytest.mark.parametrize("freeze", [None, "attention"])
@pytest.mark.parametrize("name", WIRINGS)
def test_attribution_patching_is_the_derivative_of_patching(
    name: str, freeze: str | None, at_attention: list[int]
) -> None:
    """Ablated to almost what they are, all gradients are the clean run's."""
    lens = as_lens(models.build(name))
    sets = models.random_set(lens, skip=True)
    saes = models.random_saes(lens, layers=at_attention) if at_attention else None
    eps = 1e-6
    same = pb.Ablation.resample(lens, sets, TOKENS, attention_saes=saes)
    p = problem(lens, sets, nearly(same, eps), freeze=freeze, saes=saes)
    exact = METHODS["exact"](p) / eps
    for method in ("eap", "eap_ig_inputs", "eap_ig_activations"):
        assert torch.allclose(METHODS[method](p) / eps, exact, atol=1e-4, rtol=1e-4), method
    assert not torch.allclose(METHODS["relp"](p) / eps, exact, atol=1e-2)


@pytest.mark.parametrize("attention", [False, True])
def test_integrated_gradients_are_complete(attention: bool) -> None:
    """Summed over an output they come to what ablating all of it does; the error halves as steps double."""
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    sets, saes = models.random_set(lens), models.random_saes(lens)
    ablation = pb.Ablation.resample(lens, sets, OTHER, attention_saes=saes)
    nodes = NodeSet.active(lens, sets, TOKENS, attention_saes=saes)
    here = (nodes.layer == 1) & (nodes.attention == attention)
    site = "blocks.1.hook_attn_out" if attention else "blocks.1.hook_mlp_out"
    whole = problem(lens, sets, ablation, saes=saes).patches.together(site)
    assert list(whole) == [site]
    margin = Margin(3, 7)
    without, _ = lens.record(TOKENS[None], [], [(site, lambda y: y - whole[site])])
    lost = (margin(lens.logits(TOKENS[None])) - margin(without))[0]
    gaps = [
        float(eap_ig_activations(problem(lens, sets, ablation, steps=m, saes=saes))[here].sum() - lost)
        for m in (16, 32, 64, 128)
    ]
    for coarse, fine in zip(gaps, gaps[1:], strict=False):
        assert coarse / fine == pytest.approx(2, abs=0.25)
    assert abs(gaps[-1]) < 0.05 * abs(float(lost))


def test_one_step_of_a_path() -> None:
    """Of embeddings k = 0 only, the gradient of the other prompt's own run; of activations k = 1, the clean run's."""
    lens = as_lens(models.build("gpt2"))
    sets, saes = models.random_set(lens), models.random_saes(lens, layers=[1])
    p = problem(lens, sets, pb.Ablation.resample(lens, sets, OTHER, attention_saes=saes), steps=1, saes=saes)
    sites = [*(f"blocks.{i}.hook_mlp_out" for i in range(3)), "blocks.1.hook_attn_out"]
    assert p.patches.sites == sites
    _, gradients, _ = output_gradients(lens, OTHER[None], {site: site for site in sites}, p.margin)
    expected = p.patches.along({i: g[0] for i, g in gradients.items()})
    assert torch.allclose(METHODS["eap_ig_inputs"](p), expected, atol=1e-10)
    assert torch.allclose(METHODS["eap_ig_activations"](p), METHODS["eap"](p), atol=1e-10)


@pytest.mark.parametrize("gated", [True, False])
def test_relevance_changes_no_value_and_is_conserved(gated: bool) -> None:
    """Without biases nothing is made or lost on the way: relevance at the embeddings is the margin."""
    act = {"gated_mlp": True, "act_fn": "silu"} if gated else {"act_fn": "gelu"}
    model = models.native(seed=5, normalization_type="RMS", positional_embedding_type="rotary", **act)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    lens = as_lens(model)
    margin = Margin(3, 7)
    plain = margin(lens.logits(TOKENS[None]))
    values, relevance, seen = output_gradients(
        lens, TOKENS[None], {0: "hook_embed"}, margin, edits=relevance_edits(lens), sites=["hook_embed"]
    )
    assert torch.allclose(values, plain, atol=1e-10)
    assert float((relevance[0] * seen["hook_embed"]).sum()) == pytest.approx(float(plain), rel=1e-9)
    _, gradients, _ = output_gradients(lens, TOKENS[None], {0: "hook_embed"}, margin)
    assert float((gradients[0] * seen["hook_embed"]).sum()) != pytest.approx(float(plain), rel=1e-3)


def test_relevance_refuses_what_it_cannot_reach() -> None:
    model = models.native(seed=41)
    lens = as_lens(model)
    sets = models.random_set(lens)
    graph = pb.attribute(lens, sets, TOKENS)
    handles = []
    try:
        for block in model.blocks:
            stale = {}
            last = block.mlp.out.original_component  # behind the hook
            handles.append(last.register_forward_pre_hook(lambda _m, a, stale=stale: stale.setdefault(0, a)))
        lens.logits(TOKENS[None])
        with pytest.raises(ValueError, match=r"edits at blocks\.0\.mlp\.hook_post do not reach the output"):
            pb.node_scores(lens, sets, graph, methods=["relp"])
    finally:
        for handle in handles:
            handle.remove()


def test_tables() -> None:
    lens = as_lens(models.build("gpt2"))
    sets, saes = models.random_set(lens), models.random_saes(lens, layers=[1])
    graph = pb.attribute(lens, sets, TOKENS, attention_saes=saes)
    found = pb.node_scores(lens, sets, graph, methods=["exact", "eap"], batch_size=7, attention_saes=saes)
    nodes = found.to_pandas()
    of_graph = graph.to_pandas()[0].set_index("id")
    assert nodes["id"].tolist() == NodeSet.of(graph).ids()
    assert nodes["kind"].tolist() == of_graph.loc[nodes["id"], "kind"].tolist()
    assert list(nodes.columns) == ["id", "kind", "layer", "pos", "feature", "graph", "exact", "eap"]
    named = pb.node_scores(lens, sets, graph, methods=iter(["eap"]), attention_saes=saes)
    assert torch.equal(named.scores["eap"], found.scores["eap"])
    table = found.correlations()
    assert list(table.columns) == list(table.index) == ["graph", "exact", "eap"]
    assert all(table[m][m] == pytest.approx(1) for m in table)
    assert table["eap"]["exact"] == table["exact"]["eap"] > 0.5
    assert margin_of(graph).other is not None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"methods": ["atp"]}, "there are the methods exact, eap, eap_ig_inputs, eap_ig_activations, relp, not atp"),
        ({"steps": 0}, "steps and batch_size must be at least 1"),
        ({"batch_size": 0}, "steps and batch_size must be at least 1"),
        ({"freeze": "all"}, "freeze 'attention' or None"),
        ({"freeze": "norms"}, "freeze must be"),
    ],
)
def test_what_cannot_be_scored_is_said(options: Any, sentence: str) -> None:
    lens = as_lens(models.build("gpt2"))
    sets = models.random_set(lens)
    with pytest.raises(ValueError, match=sentence):
        pb.node_scores(lens, sets, pb.attribute(lens, sets, TOKENS), **options)
