"""Circuits of models whose circuit is known, and the examples of docs/HIERARCHICAL.md."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

import pullback as pb
from pullback import zoo
from pullback.attribution import nodes as k
from pullback.attribution.hierarchical import Gate, circuit_of, entry_thresholds
from pullback.causal import Margin, faithfulness_curves, hierarchical_scores
from tests.attribution.hierarchical.test_gates import at

PAGE = (Path(__file__).parents[3] / "docs" / "HIERARCHICAL.md").read_text(encoding="utf-8")


def features_of(graph: pb.Graph) -> set[str]:
    feature = graph.of_kind(k.FEATURE).tolist()
    return {name for name, is_feature in zip(graph.node_ids(), feature, strict=True) if is_feature}


def test_planted_circuits_are_found_whole_and_alone() -> None:
    truth, model, sets = zoo.truth("planted"), zoo.load("planted"), zoo.transcoders("planted")
    for prompt in truth.prompts[::5]:
        found = pb.hierarchical(model, sets, prompt.text, prompt.answer, tau=0.2, relative=True)
        names = [f"{layer}_{f}_{pos}" for layer, pos, f in truth.features(prompt)]
        assert features_of(found.graph) == set(names)
        state, relation, answer = names
        share = found.attribution[found.whole.places([answer])] / found.whole.nodes.preactivation[found.target]
        assert float(share) > 0.9  # the rest are faint features, and words on their direct way
        local = circuit_of(found.whole, answer, gate=Gate(0.2, relative=True))
        assert features_of(local.graph) == set(names)
        nearly_all = circuit_of(found.whole, answer, gate=Gate(0.001, "abs", relative=True))
        assert nearly_all.recovery == pytest.approx(1, abs=0.01)
        edges = truth.edges(prompt)
        for source in (state, relation):
            assert local.graph.edge(source, answer) == pytest.approx(edges[source, answer], rel=1e-4)


def test_errors_can_stay_whatever_they_carry() -> None:
    model, sets = zoo.load("tiny-mix"), zoo.transcoders("tiny-mix")
    graph = pb.attribute(model, sets, "dallas is in", attribution_targets="texas")
    cut, with_errors = (circuit_of(graph, gate=Gate(0.1, relative=True), keep_errors=keep) for keep in (False, True))
    assert cut.recovery == with_errors.recovery
    kept = [int((one.graph.of_kind(k.ERROR)).sum()) for one in (cut, with_errors)]
    assert kept[0] < kept[1]
    assert torch.equal(cut.attribution[~graph.of_kind(k.ERROR)], with_errors.attribution[~graph.of_kind(k.ERROR)])
    assert with_errors.graph.check() < 1e-5


@pytest.mark.parametrize("gate", [Gate(0.05, relative=True), Gate(0.01, "abs", relative=True), Gate(top=3)])
def test_own_leaves_stay_with_what_they_belong_to_and_have_what_they_carry(gate: Gate) -> None:
    model, sets = zoo.load("tiny-mix"), zoo.transcoders("tiny-mix")
    graph = pb.attribute(model, sets, "dallas is in", attribution_targets="texas")
    found = circuit_of(graph, gate=gate)
    own = (graph.nodes.kind == k.OWN).nonzero()[:, 0]
    of = graph.nodes.feature[own]
    assert torch.equal(found.kept[own], found.kept[of])
    assert 0 < int(found.kept[own].sum()) < len(own)
    # The share of its target that the own leaf is, of what the target has.
    carried = torch.tensor([found.attribution[t] / graph.nodes.preactivation[t] for t in of.tolist()])
    edges = torch.tensor([graph.edge(graph.node_ids()[o], graph.node_ids()[t]) for o, t in zip(own, of, strict=True)])
    assert torch.allclose(found.attribution[own], carried * edges, rtol=1e-5, atol=1e-7)
    assert bool((found.attribution[own][~found.kept[own]] == 0).all())


def test_attributions_of_a_circuit_add_up_node_by_node() -> None:
    """What comes into a kept node is its attribution, less what was cut from it; own leaves are part of the sum."""
    model, sets = zoo.load("exact", dtype=torch.float64), zoo.transcoders("exact", dtype=torch.float64)
    graph = pb.attribute(model, sets, torch.tensor([1, 5, 2]), attribution_targets=3)
    whole = circuit_of(graph, gate=Gate(-math.inf))
    leaves = graph.of_kind(k.EMBEDDING, k.POSITION, k.ERROR, k.BIAS, k.OWN)
    value = float(graph.nodes.preactivation[whole.target])
    assert float(whole.attribution[leaves].sum()) == pytest.approx(value, abs=1e-10)
    assert abs(float(whole.attribution[graph.nodes.kind == k.OWN].sum())) > 1e-3, "biases of encoders are among them"
    found = circuit_of(graph, gate=Gate(0.02, "abs", relative=True))
    share = torch.where(found.kept, found.attribution / graph.nodes.preactivation.nan_to_num(1.0), 0)
    targets = graph.indptr.diff() > 0
    given = torch.zeros(graph.n_nodes, dtype=torch.float64)
    given.index_add_(0, graph.sources.long(), share[graph.rows()] * graph.weights)
    kept = found.kept & ~(targets & (torch.arange(graph.n_nodes) == found.target))
    assert torch.allclose(found.attribution[kept], given[kept], atol=1e-12)


def test_exact_models_have_no_errors_in_their_circuits() -> None:
    model, sets = zoo.load("exact", dtype=torch.float64), zoo.transcoders("exact", dtype=torch.float64)
    found = pb.hierarchical(model, sets, torch.tensor([1, 5, 2]), 3, tau=0.01, relative=True, mode="abs")
    assert int(found.graph.of_kind(k.ERROR).sum()) == 0
    assert found.graph.check() < 1e-10


def test_nodes_rank_by_the_threshold_at_which_they_enter() -> None:
    model, sets = zoo.load("tiny-mix"), zoo.transcoders("tiny-mix")
    graph = pb.attribute(model, sets, "dallas is in", attribution_targets="texas")
    start = at(graph, int(graph.explained.nonzero()[0]))
    entered = entry_thresholds(graph, start)
    for tau in (0.3, 0.05, 0.004):
        kept = circuit_of(graph, gate=Gate(tau, relative=True)).kept & ~graph.of_kind(k.OWN)
        # What a threshold keeps has entered at it or a larger one, up to the grid between them.
        assert float(entered[kept].min()) > tau * 10 ** (-4 / 47) * 0.999
    assert float(entered.max()) <= 1


def test_a_difference_is_a_target_of_two_signs() -> None:
    model, sets = zoo.load("tiny-mix"), zoo.transcoders("tiny-mix")
    graph = pb.attribute(model, sets, "dallas is in", attribution_targets=["texas", "ohio"])
    tokens = graph.nodes.feature[graph.of_kind(k.LOGIT)].tolist()
    margin = Margin(*tokens)
    curves = faithfulness_curves(model, sets, graph, {"h": hierarchical_scores(graph, margin)}, margin=margin)
    curve = curves.curves["h"]["signed"]
    assert curve.faithfulness[-1] == pytest.approx(1, abs=1e-4)
    assert curve.recovery[-1] == pytest.approx(1, abs=1e-4)
    half = curve.sizes.index(0.2)
    assert curve.faithfulness[half] > 0.8  # a fifth of the nodes does most of it


def test_the_examples_run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for example in re.findall(r"```python\n(.*?)```", PAGE, flags=re.S):
        exec(compile(example, "HIERARCHICAL.md", "exec"), names)
    said = re.search(r"(\d+) features and their leaves give (\.\d+) of the logit", PAGE)
    assert said is not None
    found = names["found"]
    assert len(features_of(found.graph)) == int(said[1])  # pyright: ignore[reportAttributeAccessIssue]
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].endswith(f"0{said[2]}")
    judged = re.search(r"(\.\d+) with the errors of all transcoders kept, (\.\d+) without any", PAGE)
    assert judged is not None
    assert re.findall(r"^errors \w+: 0(\S+)$", printed, flags=re.M) == list(judged.groups())
    assert {path.name for path in tmp_path.iterdir()} == {"circuit.html", "circuit.json"}
