"""Attribution through the model itself: the authors' example, sums of leaves, and what the linear engine finds."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pullback as pb
from pullback import zoo
from pullback.attribution import nodes as k
from pullback.attribution.hierarchical import Gate, LivePass, ModelAttribution
from pullback.attribution.hierarchical.gates import gated
from pullback.lens import Lens, as_lens
from tests import families, models
from tests.attribution.hierarchical.test_gates import at
from tests.attribution.test_identities import tokens_of

TOKEN = 4
WIRINGS = ["LN-gqa-standard-plain", "RMS-mha-rotary-gated", "neox-parallel"]


def through(lens: Lens, target: Any = TOKEN, *, n: int = 5, saes: bool = False, **options: Any) -> ModelAttribution:
    """With random transcoders, and autoencoders if asked for."""
    sets = {"transcoders": models.random_set(lens)}
    if saes:
        sets["attention_saes"] = models.random_saes(lens)
    return pb.attribute_through_model(lens, tokens_of(n), target, **{**sets, **options})


def authors() -> tuple[Any, pb.TranscoderSet]:
    """x = 1; x += m1 @ [1, 1] with m1 = x @ [1, 2]; x += m2 @ [2, 1] with m2 = x @ [1, 1]: x is 16, and so is the logit
    of token 1."""
    model = models.native(
        n_layers=2, d_model=1, d_head=1, n_heads=1, d_mlp=2, d_vocab=2, act_fn="relu", normalization_type=None
    )
    into, out = [[[1.0], [2.0]], [[1.0], [1.0]]], [[[1.0], [1.0]], [[2.0], [1.0]]]
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        for name, p in model.named_parameters():
            if "tok_embed" in name or "head" in name:
                p.copy_(torch.tensor([[0.0], [1.0]]))
            for layer in range(2):
                if f"layers.{layer}." in name and "weight" in name and "fc_in" in name:
                    p.copy_(torch.tensor(into[layer]))
                if f"layers.{layer}." in name and "weight" in name and "fc_out" in name:
                    p.copy_(torch.tensor(out[layer]).T)
    zeros = {n: torch.zeros(n, dtype=torch.float64) for n in (1, 2)}
    sets = pb.TranscoderSet(
        {
            layer: pb.Transcoder(
                torch.tensor(into[layer]).double(),
                zeros[2],
                torch.tensor(out[layer]).double(),
                zeros[1],
                activation=pb.ReLU(),
                reading=as_lens(model).reading(layer),
            )
            for layer in range(2)
        }
    )
    return model, sets


@pytest.mark.parametrize(
    ("method", "tau", "m1", "m2", "leaf"),
    [
        ("direct", 0.1, [1, 2], [8, 4], 1),
        ("standard", 0.1, [4, 8], [8, 4], 16),
        ("hierarchical", 0.1, [4, 8], [8, 4], 16),
        ("hierarchical", 5, [0, 6], [8, 0], 9),
    ],
)
def test_the_authors_example(method: str, tau: float, m1: list[float], m2: list[float], leaf: float) -> None:
    model, sets = authors()
    found = pb.attribute_through_model(
        model, torch.tensor([1]), lambda run: run.logits[-1, 1], transcoders=sets, method=method, tau=tau
    )
    assert found.value == 16
    assert found.nodes["blocks.0.hook_mlp_out"].attribution.tolist() == m1
    assert found.nodes["blocks.1.hook_mlp_out"].attribution.tolist() == m2
    assert float(found.leaves["embedding", -1]) == leaf
    assert not any(found.leaves["error", layer].any() for layer in range(2))


@pytest.mark.parametrize("name", models.ALL)
def test_leaves_sum_to_the_target(name: str) -> None:
    lens = as_lens(models.build(name))
    found = through(lens, saes=True, method="standard")
    assert found.recovery == pytest.approx(1, abs=1e-10)
    for kind in ("error", "attention_error"):
        assert float(found.leaves[kind, 0].abs().max()) > 0, "random dictionaries must leave errors"


@pytest.mark.parametrize("name", WIRINGS)
def test_a_gate_that_cuts_nothing_is_none(name: str) -> None:
    lens = as_lens(models.build(name))
    found, standard = through(lens, saes=True, tau=-math.inf), through(lens, saes=True, method="standard")
    assert torch.equal(found.attribution, standard.attribution)
    assert found.recovery == standard.recovery


@pytest.mark.parametrize("name", families.FAMILIES)
def test_leaves_sum_to_the_target_in_every_family(name: str) -> None:
    lens = as_lens(families.build(name))
    found = through(lens, saes=True, method="standard")
    assert found.recovery == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("dictionary", ["skip", "clt", "some layers", "none", "relu", "jumprelu"])
def test_leaves_sum_whatever_the_dictionaries(dictionary: str) -> None:
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    sets = {
        "skip": lambda: models.random_set(lens, skip=True),
        "clt": lambda: models.random_clt(lens),
        "some layers": lambda: models.random_set(lens, layers=[1]),
        "none": lambda: None,
    }.get(dictionary, lambda: models.random_set(lens, activation=dictionary))()
    saes = models.random_saes(lens, layers=[0, 2])
    for target in (TOKEN, pb.LogitDifference((3, 8))):
        found = through(lens, target, transcoders=sets, attention_saes=saes, method="standard")
        assert found.recovery == pytest.approx(1, abs=1e-10)


def asked(lens: Lens, what: str) -> Any:
    if what == "logit":
        return TOKEN
    graph = linear(lens, TOKEN)
    kind = k.ATTENTION_FEATURE if what == "attention feature" else k.FEATURE
    here = graph.of_kind(kind) & (graph.nodes.layer == 2) & (graph.nodes.pos == 4)
    feature = graph.nodes.feature[here][graph.nodes.activation[here].argmax()]
    return pb.FeatureTarget(2, 4, int(feature), attention=kind == k.ATTENTION_FEATURE)


def linear(lens: Lens, target: Any, *, saes: bool = True) -> pb.Graph:
    """What the linear engine says of what `through` is asked."""
    of_attention = models.random_saes(lens) if saes else None
    sets = models.random_set(lens)
    return pb.attribute(lens, sets, tokens_of(5), attribution_targets=target, attention_saes=of_attention)


BY_SITE = {1: 0.1, "blocks.1.hook_attn_out": 0.02, "blocks.2.hook_attn_out": 0.3}


@pytest.mark.parametrize(
    "gate", [Gate(-math.inf), Gate(0.0), Gate(0.05), Gate(0.3, "abs"), Gate(0.01, relative=True), Gate(BY_SITE)]
)
@pytest.mark.parametrize(
    ("what", "saes"), [("logit", False), ("feature", False), ("logit", True), ("attention feature", True)]
)
@pytest.mark.parametrize("name", WIRINGS)
def test_equals_the_linear_engine_node_for_node(name: str, what: str, saes: bool, gate: Gate) -> None:
    lens = as_lens(models.build(name))
    target = asked(lens, what)
    found = through(lens, target, saes=saes, tau=gate.tau, mode=gate.mode, relative=gate.relative)
    graph = linear(lens, target, saes=saes)
    t = int(graph.explained.nonzero()[0])
    nodes_of_graph, leaves_of_graph = gated(graph, at(graph, t), gate)
    ids, leaf = graph.node_ids(), graph.indptr.diff() == 0
    attributions = torch.where(leaf, leaves_of_graph, nodes_of_graph)
    theirs = {ids[n]: float(v) for n, v in enumerate(attributions) if float(v) and n != t}
    nodes, _ = found.to_pandas()
    ours = dict(zip(nodes["id"], nodes["attribution"], strict=True))
    scale = max(map(abs, theirs.values()))
    assert found.value == pytest.approx(float(graph.nodes.preactivation[t]), abs=1e-10)
    for name_of in ours.keys() | {i for i in theirs if not i.startswith("own")}:
        assert abs(ours.get(name_of, 0.0) - theirs.get(name_of, 0.0)) <= 1e-9 * scale, name_of
    own = sum(v for i, v in theirs.items() if i.startswith("own"))
    assert float(sum(part.sum() for part in found.own.values())) + found.rest == pytest.approx(own, abs=1e-9 * scale)


def test_a_few_of_each_site_can_be_kept() -> None:
    found = through(as_lens(models.build(WIRINGS[0])), saes=True, top=3)
    assert {int((c.attribution != 0).sum()) for c in found.nodes.values()} == {3}


def matrix(found: ModelAttribution) -> tuple[Tensor, Tensor]:
    """Direct effects (n + 1, n + 1), the target last, and the values (n + 1) that rows sum to; 1 for leaves."""
    assert found.edges is not None
    n = len(found.attribution)
    A = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    A[found.edges.target % (n + 1), found.edges.source] = found.edges.weight
    value = torch.ones(n + 1, dtype=torch.float64)
    values = torch.cat([c.value for c in found.nodes.values()])
    value[: len(values)] = values
    value[-1] = found.value
    return A, value


@pytest.mark.parametrize("name", [*WIRINGS, "gpt2-folded"])
def test_direct_and_total_effects_agree(name: str) -> None:
    """T = a_t (I - A / a)^-1, with features of attention among the nodes."""
    lens = as_lens(models.build(name))
    found = through(lens, saes=True, method="standard", edges=True)
    A, value = matrix(found)
    total = value[-1] * torch.linalg.inv(torch.eye(len(A), dtype=A.dtype) - A / value[:, None])[-1]
    assert torch.allclose(total[:-1], found.attribution, rtol=1e-8, atol=1e-10)
    direct = through(lens, saes=True, method="direct")
    assert torch.allclose(direct.attribution, A[-1, :-1], rtol=1e-9, atol=1e-12)
    for layer in range(3):
        features = found.nodes[f"blocks.{layer}.hook_attn_out"]
        assert float(features.attribution[features.places[:, 0] == 4].abs().min()) > 0


def test_edges_of_a_circuit_are_between_what_is_kept() -> None:
    lens = as_lens(models.build(WIRINGS[0]))
    whole = through(lens, saes=True, method="standard", edges=True)
    found = through(lens, saes=True, tau=0.05, edges=True)
    nodes, edges = found.to_pandas()
    assert {*edges["source"], *edges["target"]} <= {*nodes["id"], "target"}
    assert 0 < len(edges) < len(whole.to_pandas()[1])
    A, _ = matrix(found)
    B, _ = matrix(whole)
    assert torch.allclose(A[A != 0], B[A != 0])
    cut = int((found.attribution == 0).sum())
    assert cut > 0
    # A kept node reaches the target through kept nodes.
    reached, fresh = set(), {"target"}
    while fresh:
        reached |= fresh
        fresh = {s for s, t in zip(edges["source"], edges["target"], strict=True) if t in reached} - reached
    assert reached == {*nodes["id"], "target"}


def finite_difference(f: Any, x: Tensor, direction: Tensor, step: float = 1e-6) -> float:
    return float((f(x + step * direction) - f(x - step * direction)) / (2 * step))


@pytest.mark.parametrize("name", [*WIRINGS, "gpt2", "llama"])
def test_scores_are_nodes_of_their_own(name: str) -> None:
    """Their gradient is that of the logit in the model whose last pattern is made of scores moved by hand."""
    lens = as_lens(models.build(name))
    found = through(lens, attention_scores=[2], method="direct")
    scores = found.nodes["blocks.2.attn.hook_attn_scores"]
    pattern = pb.lens.trace(lens, tokens_of(5)).layers[2].pattern
    T, n_heads = 5, lens.n_heads
    assert len(scores.places) == n_heads * T * (T + 1) // 2
    written = lens.record(tokens_of(5)[None], ["blocks.2.hook_mlp_out", "ln_final.hook_scale"])[1]

    def logit(moved: Tensor) -> Tensor:
        """All else as it was: the last MLP is a transcoder whose features are nodes too, so they stay."""
        weights = torch.softmax(moved.masked_fill(pattern == 0, -math.inf), -1)[None]
        edits = [("blocks.2.attn.hook_pattern", lambda _t: weights)]
        edits += [(site, lambda _t, held=held: held) for site, held in written.items()]
        logits, _ = lens.record(tokens_of(5)[None], [], edits)
        return logits[0, -1, TOKEN] - logits[0, -1].mean()

    base = torch.full_like(pattern, -math.inf)
    base[pattern > 0] = scores.value
    assert torch.allclose(torch.softmax(base, -1), pattern, atol=1e-6)
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(pattern.shape, generator=generator, dtype=pattern.dtype).masked_fill(pattern == 0, 0)
    gradient = scores.attribution / scores.value
    moves = float((gradient * direction[pattern > 0]).sum())
    assert moves == pytest.approx(finite_difference(logit, base.nan_to_num(neginf=0), direction), rel=1e-5)
    assert abs(moves) > 1e-6


def test_scores_pass_on_what_they_carry() -> None:
    """With scores as nodes, what lies below counts through queries and keys too; cut, it is as with frozen patterns."""
    lens = as_lens(models.build(WIRINGS[0]))
    frozen = through(lens, method="standard")
    live = through(lens, method="standard", attention_scores=[1, 2])
    site = "blocks.1.attn.hook_attn_scores"
    assert bool(live.nodes[site].attribution.any())
    assert not torch.allclose(live.leaves["embedding", -1], frozen.leaves["embedding", -1])
    taus = {f"blocks.{layer}.attn.hook_attn_scores": math.inf for layer in (1, 2)}
    gated = through(lens, attention_scores=[1, 2], tau=taus)
    assert not gated.nodes[site].attribution.any()
    assert torch.allclose(gated.leaves["embedding", -1], frozen.leaves["embedding", -1], rtol=1e-9)
    nodes, _ = live.to_pandas()
    assert "1_score_0_3_4" in set(nodes["id"])


def test_a_target_may_be_any_function() -> None:
    lens = as_lens(models.build(WIRINGS[0]))
    site = "blocks.1.hook_resid_post"
    vector = torch.arange(models.D_MODEL).double()

    def probe(run: LivePass) -> Tensor:
        return run.at[site][2] @ vector

    found = through(lens, probe, sites=[site], method="standard")
    theirs = linear(lens, pb.DirectionTarget(vector, site, position=2), saes=False)
    assert found.value == pytest.approx(float(theirs.nodes.preactivation[theirs.explained][0]))
    total = dict(zip(theirs.node_ids(), theirs.total_effects().total[0].tolist(), strict=True))
    nodes, _ = found.to_pandas()
    for name, value in zip(nodes["id"], nodes["attribution"], strict=True):
        assert value == pytest.approx(total[name], abs=1e-9), name
    surprise = through(lens, lambda run: run.logits[-1].log_softmax(-1)[TOKEN], method="standard")
    assert surprise.value == pytest.approx(float(lens.logits(tokens_of(5)[None])[0, -1].log_softmax(-1)[TOKEN]))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "total"}, "method must be one of"),
        ({"attention_scores": [3]}, "attention_scores names layers 0..2"),
        ({"mode": "both"}, "mode must be"),
        ({"method": "direct", "tau": 0.2}, "cuts nothing by size; leave them out"),
        ({"method": "standard", "top": 3}, "cuts nothing by size; leave them out"),
        ({"target": [1, 2]}, "one target at a time"),
        ({"target": pb.LogitTarget(3, position=9)}, "position 9 lies outside"),
        ({"target": pb.FeatureTarget(7, 0, 0)}, "no transcoder of layer 7"),
        ({"target": pb.FeatureTarget(1, 0, 0, attention=True)}, "no autoencoder of layer 1"),
        ({"target": pb.DirectionTarget(torch.ones(16))}, "explained by a function"),
        ({"target": lambda run: run.logits}, "gives one number with a gradient"),
        ({"target": lambda run: 3.0}, "gives one number with a gradient"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], sentence: str) -> None:
    lens = as_lens(models.build(WIRINGS[0]))
    with pytest.raises(ValueError, match=sentence):
        through(lens, **options)


def test_the_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the section of docs/HIERARCHICAL.md."""
    page = (Path(__file__).parents[3] / "docs" / "HIERARCHICAL.md").read_text(encoding="utf-8")
    section = page.split("## Through the model itself")[1]
    model, sets = zoo.load("tiny-mix"), zoo.transcoders("tiny-mix")
    prompt = "the capital of the state containing dallas is"
    names: dict[str, Any] = {"pb": pb, "model": model, "sets": sets, "prompt": prompt}
    for example in re.findall(r"```python\n(.*?)```", section, flags=re.S):
        exec(compile(example, "HIERARCHICAL.md", "exec"), names)
    said = re.search(r"It prints `(.*)`", section)
    assert said is not None
    assert capsys.readouterr().out == said[1] + "\n"
    attribution, whole = (
        names["attribution"],
        pb.attribute_through_model(
            model,
            prompt,
            lambda run: run.logits[-1, names["austin"]],
            transcoders=sets,
            attention_saes=zoo.saes("tiny-mix"),
            method="standard",
        ),
    )
    assert torch.allclose(attribution, whole.nodes["blocks.2.hook_attn_out"].attribution, rtol=1e-4, atol=1e-5)


def test_the_zoo_through_the_model_is_the_zoo_on_graphs() -> None:
    model, sets, saes = (make("tiny-mix", dtype=torch.float64) for make in (zoo.load, zoo.transcoders, zoo.saes))
    prompt = "the capital of the state containing dallas is"
    options: dict[str, Any] = {"attention_saes": saes, "tau": 0.02, "relative": True}
    found = pb.attribute_through_model(model, prompt, "austin", transcoders=sets, **options)
    on_graph = pb.hierarchical(model, sets, prompt, "austin", **options)
    assert found.recovery == pytest.approx(on_graph.recovery, abs=1e-9)
    nodes, _ = found.to_pandas()
    theirs, _ = on_graph.to_pandas()
    for kind in ("feature", "attention_feature"):
        one, other = (
            dict(table.loc[table["kind"] == kind, ["id", "attribution"]].itertuples(index=False))
            for table in (nodes, theirs)
        )
        assert len(one) > 10
        assert one == pytest.approx(other, abs=1e-9)


def test_models_in_16_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="need float32 or float64"):
        through(as_lens(models.build(WIRINGS[0], torch.bfloat16)))
