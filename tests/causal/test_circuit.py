"""Circuits: what is kept stays, what is not is ablated, and the curves made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pullback as pb
from pullback.attribution.nodes import FEATURE, LOGIT, OWN
from pullback.causal import CircuitRunner, NodeSet, auroc, graph_scores, margin_of, recovery
from pullback.lens import as_lens
from tests import models
from tests.causal.exact import prompts

TOKENS, OTHER = prompts(2, 6, seed=1)
WIRINGS = ["LN-gqa-standard-plain", "RMS-gqa-rotary-gated", "neox-parallel"]


def kinds(lens: Any, sets: Any) -> list[pb.Ablation | None]:
    return [None, pb.Ablation.mean(lens, sets, [TOKENS, OTHER]), pb.Ablation.resample(lens, sets, OTHER)]


@pytest.mark.parametrize("draw", [models.random_set, models.random_clt])
@pytest.mark.parametrize("name", WIRINGS)
def test_with_every_node_kept_it_is_the_model(name: str, draw: Any) -> None:
    lens = as_lens(models.build(name))
    sets = draw(lens, skip=True)
    graph = pb.attribute(lens, sets, TOKENS)
    for ablation in kinds(lens, sets):
        runner = CircuitRunner.of(lens, sets, graph, ablation=ablation)
        every = torch.ones(len(runner.nodes), dtype=torch.bool)
        assert torch.allclose(runner.logits(every), lens.logits(TOKENS[None])[0], atol=1e-9)


@pytest.mark.parametrize("draw", [models.random_set, models.random_clt])
def test_with_none_kept_it_writes_what_the_other_prompt_wrote(draw: Any) -> None:
    """Nodes of both prompts: every feature and error is then the other prompt's, and so is every MLP output."""
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    sets = draw(lens)
    nodes = NodeSet.active(lens, sets, TOKENS).union(NodeSet.active(lens, sets, OTHER))
    runner = CircuitRunner(lens, sets, TOKENS, nodes, pb.Ablation.resample(lens, sets, OTHER), freeze=None)
    ours = runner.logits(torch.zeros(len(nodes), dtype=torch.bool))
    given = {i: y for i, (_, y) in lens.mlp_io(OTHER[None]).items()}
    with lens.patch_mlp({i: lambda _x, _y, i=i: given[i] for i in range(3)}):
        expected = lens.logits(TOKENS[None])[0]
    assert torch.allclose(ours, expected, atol=1e-9)


def test_some_kept_by_hand() -> None:
    """Dense arithmetic at every layer; layer 1 has no transcoder, so all it writes is error."""
    lens = as_lens(models.build("gpt2"))
    sets = models.random_set(lens, layers=[0, 2], skip=True)
    mean = pb.Ablation.mean(lens, sets, [TOKENS, OTHER])
    nodes = NodeSet.active(lens, sets, TOKENS)
    keep = torch.rand(len(nodes), generator=torch.Generator().manual_seed(0)) < 0.5
    ours = CircuitRunner(lens, sets, TOKENS, nodes, mean, freeze=None).logits(keep)

    kept, out = (
        {place for place, k in zip(nodes.places(), keep.tolist(), strict=True) if k is w} for w in (True, False)
    )

    def by_hand(layer: int) -> Any:
        def fn(x: Tensor, y: Tensor) -> Tensor:
            rows = []
            for p in range(6):
                new, error = torch.zeros_like(y[0, p]), y[0, p]
                if layer in sets:
                    tc = sets[layer]
                    z = sets.encode(layer, x[0, p]).to_dense()[0]
                    error = error - tc(x[0, p][None])[0]
                    given = mean.acts[layer].to_dense()[0]
                    z_new = torch.tensor(
                        [z[f] if (layer, p, f) in kept else given[f] if (layer, p, f) in out else 0 for f in range(40)]
                    )
                    new = z_new @ tc.W_dec + tc.b_dec + x[0, p] @ tc.W_skip.T
                rows.append(new + (mean.errors[layer][0] if (layer, p, -1) in out else error))
            return torch.stack(rows)[None]

        return fn

    with lens.patch_mlp({i: by_hand(i) for i in range(3)}):
        expected = lens.logits(TOKENS[None])[0]
    assert torch.allclose(ours, expected, atol=1e-9)


def test_on_planted_weights_three_features_are_the_circuit(tmp_path: Path) -> None:
    """Their scores stand above all others, and alone they do most of what the model does; distractors do the rest."""
    model = pb.zoo.load("planted", dtype=torch.float64)
    sets = pb.zoo.transcoders("planted", dtype=torch.float64)
    truth = pb.zoo.truth("planted")
    prompt = truth.prompts[0]
    graph = pb.attribute(model, sets, prompt.text)
    nodes = NodeSet.of(graph)
    true = torch.tensor([place in truth.features(prompt) for place in nodes.places()])
    assert auroc(graph_scores(graph), true) == 1
    scores = graph_scores(graph)
    n, n_live = len(nodes), int((scores.abs() > 1e-9).sum())
    assert n_live == 11, "faint distractors at the words of the answer, too"
    sizes = [1.1 / n, 3.1 / n, (n_live + 0.1) / n, 1.0]
    curves = pb.faithfulness_curves(model, sets, graph, sizes=sizes)
    curve = curves.curves["graph"]["signed"]
    assert curve.n_nodes == [1, 3, n_live, n]
    assert curve.faithfulness == pytest.approx([0, 0.754, 1, 1], abs=1e-3)
    assert curve.recovery[2:] == pytest.approx([1, 1], abs=1e-9)
    assert curve.completeness[1:] == pytest.approx([0.057, 0, 0], abs=1e-3)
    curves.to_json(tmp_path / "curves.json")
    stored = json.loads((tmp_path / "curves.json").read_text())
    assert stored == json.loads(json.dumps(curves.to_dict()))
    assert stored["curves"]["graph"]["signed"]["n_nodes"] == curve.n_nodes
    assert stored["areas"]["graph"]["cpr"] == pytest.approx(curves.areas()["graph"].cpr)


def test_rankings_side_by_side() -> None:
    lens = as_lens(models.build("gpt2"))
    sets = models.random_set(lens)
    graph = pb.attribute(lens, sets, TOKENS)
    scores = graph_scores(graph)
    curves = pb.faithfulness_curves(
        lens, sets, graph, {"one": scores, "same": 2 * scores, "back": -scores}, sizes=[0.2, 1]
    )
    assert curves.curves["one"] == curves.curves["same"]
    assert curves.curves["one"]["absolute"] == curves.curves["back"]["absolute"]
    assert curves.curves["one"]["signed"] != curves.curves["back"]["signed"]
    for name, areas in curves.areas().items():
        (f0, f1), (a0, a1) = (curves.curves[name][order].faithfulness for order in ("signed", "absolute"))
        assert areas.cpr == pytest.approx(0.8 * (f0 + f1) / 2)
        assert areas.cmd == pytest.approx(0.8 * (abs(1 - a0) + abs(1 - a1)) / 2)


def test_recovery_is_what_leaves_contribute_through_kept_nodes() -> None:
    """Against a sum over all paths of the part that is kept, and by hand where no feature is."""
    lens = as_lens(models.build("gpt2"))
    sets = models.random_set(lens)
    graph = pb.attribute(lens, sets, TOKENS)
    margin, kinds = margin_of(graph), graph.nodes.kind.long()
    everything = torch.ones(graph.n_nodes, dtype=torch.bool)
    assert recovery(graph, everything) == pytest.approx(1, abs=1e-9)
    value = margin.weights(graph) @ graph.nodes.preactivation.nan_to_num()
    no_feature = ~graph.of_kind(FEATURE)
    A = torch.zeros(graph.n_nodes, graph.n_nodes, dtype=torch.float64)
    A[graph.rows(), graph.sources.long()] = graph.weights
    direct = (margin.weights(graph) @ A)[no_feature].sum()
    assert recovery(graph, no_feature) == pytest.approx(float(direct / value), abs=1e-9)
    some = no_feature | (torch.arange(graph.n_nodes) % 2 == 0)
    own = kinds == OWN
    some[own] = some[graph.nodes.feature[own]]
    part = torch.where(some[:, None] & some, A, 0) / torch.where(graph.of_kind(FEATURE), graph.nodes.activation, 1)
    paths = torch.linalg.inv(torch.eye(graph.n_nodes, dtype=torch.float64) - part)
    by_hand = (margin.weights(graph) @ paths)[some & ~graph.of_kind(FEATURE, LOGIT)].sum()
    assert recovery(graph, some) == pytest.approx(float(by_hand / value), abs=1e-9)


def test_node_sets() -> None:
    lens = as_lens(models.build("gpt2"))
    sets = models.random_set(lens)
    graph = pb.attribute(lens, sets, TOKENS)
    nodes = NodeSet.of(graph)
    assert set(nodes.ids()) <= set(graph.node_ids())
    assert sorted(nodes.places()) == sorted(NodeSet.active(lens, sets, TOKENS).places())
    assert nodes.union(nodes).places() == nodes.places()
    assert repr(nodes[nodes.is_error]) == "NodeSet(0 features, 18 errors)"


def test_what_is_no_circuit_is_said() -> None:
    lens = as_lens(models.build("gpt2"))
    sets = models.random_set(lens, layers=[0, 1])
    graph = pb.attribute(lens, sets, TOKENS)
    n = len(NodeSet.of(graph))

    def refused(sentence: str, **options: Any) -> None:
        with pytest.raises(ValueError, match=sentence):
            pb.faithfulness_curves(lens, sets, graph, **options)

    refused("scores are named, .* got Tensor", scores=torch.ones(n))
    refused(rf"scores must be \[{n}\], one for each feature and error.*'a': \[3\]", scores={"a": torch.ones(3)})
    refused("some scores of b are NaN", scores={"a": torch.ones(n), "b": torch.full((n,), torch.nan)})
    refused(r"sizes are shares of the nodes, in \(0, 1\]", sizes=[0.5, 2])
    refused("with everything frozen no node reads another", freeze="all")
    refused("must be as long as each other", ablation=pb.Ablation.resample(lens, sets, OTHER[:3]))
    runner = CircuitRunner.of(lens, sets, graph)
    with pytest.raises(ValueError, match=rf"keep must be a mask \[{n}\] of bool"):
        runner.logits(torch.ones(n))
    for wrong in ((0, 6, 1), (2, 0, 3), (3, 0, -1), (0, 0, 40)):
        nodes = NodeSet(*(torch.tensor([x]) for x in wrong))
        with pytest.raises(
            ValueError, match=f"node {wrong[0]}_{wrong[2]}_{wrong[1]} is none of this prompt of 6 tokens"
        ):
            CircuitRunner(lens, sets, TOKENS, nodes)
