"""What paths must sum to, in float64 on every wiring (METHODS 1.7 and 1.14)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
import torch

import pullback as pb
from pullback import zoo
from pullback.attribution.attention.components import components
from pullback.attribution.local import local_model
from pullback.attribution.paths import PathGraph, Paths, SearchSettings, greedy_paths, paths_of
from pullback.attribution.paths.search import Level
from pullback.lens import as_lens
from tests import families, models

TOKENS = torch.tensor([3, 7, 11])
EVERYTHING: dict[str, Any] = {"num_iters": None, "num_branches": None, "ignore_bos": False}
WIRINGS = [
    "LN-mha-standard-plain",
    "LNPre-gqa-rotary-plain",
    "RMS-gqa-rotary-gated",
    "neox-parallel",
    "llama",
    "gpt2",
    "gpt2-folded",
]
FEW = {"k": 2, "d_sae": 12}  # paths multiply


def ends(paths: Paths) -> float:
    """The sum of all paths that go nowhere."""
    return sum(float(level.contribution[~going_on(level)].sum()) for level in paths.levels)


def going_on(level: Level) -> torch.Tensor:
    return level.readings.below > level.readings.first


def lens_of(name: str) -> Any:
    return as_lens(families.build(name) if name in families.FAMILIES else models.build(name))


def positions(lens: Any) -> set[str]:
    return {"P"} if lens.positional == "learned" else set()


@pytest.mark.parametrize("ln", ["frozen", "ratio"])
@pytest.mark.parametrize("name", [*WIRINGS, "gemma2", "phi"])
def test_the_ends_of_all_paths_sum_to_the_root(name: str, ln: str) -> None:
    lens = lens_of(name)
    sets = models.random_set(lens, **FEW)
    for root in (5, pb.FeatureTarget(2, 2, 7), pb.LogitDifference((3, 8))):
        paths = greedy_paths(lens, sets, TOKENS, root, leaves=True, ln=ln, **EVERYTHING)
        assert len(paths) > 400
        assert ends(paths) == pytest.approx(paths.root_value, abs=1e-10)
        graph = paths.graph()
        assert graph.check() < 1e-10
        assert not any(name.startswith("pruned") for name in graph.ids)
    # Nor is anything left out where errors and biases are one node for each parent.
    graph = greedy_paths(lens, sets, TOKENS, 5, ln=ln, **EVERYTHING).graph()
    assert graph.check() < 1e-10
    assert {name.split("_")[0] for name in graph.ids if not name[0].isdigit()} == {
        "E",
        "errors",
        "biases",
        *positions(lens),
    }


@pytest.mark.parametrize(
    "options", [{"skip": True}, {"hook_in": "ln2.hook_normalized"}, {"hook_in": "hook_resid_mid"}, {"layers": [1]}]
)
@pytest.mark.parametrize("ln", ["frozen", "ratio"])
def test_so_they_do_for_every_kind_of_transcoder(options: dict[str, Any], ln: str) -> None:
    lens = lens_of("LN-gqa-standard-plain")
    paths = greedy_paths(lens, models.random_set(lens, **FEW, **options), TOKENS, 5, leaves=True, ln=ln, **EVERYTHING)
    # The ratios of single vectors may be large, and cancel.
    assert ends(paths) == pytest.approx(paths.root_value, abs=1e-10 if ln == "frozen" else 1e-8)


def test_features_that_write_to_several_layers_are_one_step() -> None:
    lens = lens_of("LN-gqa-standard-plain")
    sets = models.random_clt(lens, **FEW)
    paths = greedy_paths(lens, sets, TOKENS, 5, leaves=True, **EVERYTHING)
    assert ends(paths) == pytest.approx(paths.root_value, abs=1e-10)


@pytest.mark.parametrize(
    "site", ["blocks.1.hook_mlp_out", "blocks.2.hook_attn_out", "blocks.2.hook_resid_pre", "blocks.1.hook_resid_mid"]
)
def test_a_direction_can_be_read_anywhere(site: str) -> None:
    lens = lens_of("LN-gqa-standard-plain")
    v = torch.randn(models.D_MODEL, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    _, seen = lens.record(TOKENS[None], [site])
    paths = greedy_paths(
        lens, models.random_set(lens, **FEW), TOKENS, pb.DirectionTarget(v, site, 1), leaves=True, **EVERYTHING
    )
    assert paths.root_value == pytest.approx(float(seen[site][0, 1] @ v), abs=1e-12)
    assert ends(paths) == pytest.approx(paths.root_value, abs=1e-10)
    if site.endswith("out"):
        writes_there = {"blocks.1.hook_mlp_out": "1", "blocks.2.hook_attn_out": "2"}[site]
        assert {path.nodes[1].split("_")[0] for path in paths.of_length(2)} == {writes_there}


@pytest.mark.parametrize("name", WIRINGS)
def test_one_step_is_every_term_of_the_stream(name: str) -> None:
    """A head's terms sum over its source positions to what it writes."""
    lens = lens_of(name)
    sets = models.random_set(lens)
    v = torch.randn(models.D_MODEL, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    root = pb.DirectionTarget(v, "blocks.2.hook_resid_pre")
    options = {**EVERYTHING, "num_iters": 1}
    found: dict[str, float] = defaultdict(float)
    for path in greedy_paths(lens, sets, TOKENS, root, leaves=True, **options).of_length(2):
        name = path.nodes[1]
        found[name.rpartition("_")[0] if "head" in name else name] += path.contribution
    parts = components(local_model(lens, sets, TOKENS), 2, 2)
    expected = {
        name.rpartition("_")[0] if kind == "head" else name: float(u @ v)
        for name, kind, u in zip(parts.names, parts.kinds, parts.vectors, strict=True)
    }
    assert found == pytest.approx({name: value for name, value in expected.items() if value}, abs=1e-11)


@pytest.mark.parametrize("name", ["LN-gqa-standard-plain", "neox-parallel"])
def test_paths_through_heads_alone_are_the_edges_of_an_attribution_graph(name: str) -> None:
    lens = lens_of(name)
    sets = models.random_set(lens, **FEW)
    graph = pb.attribute(lens, sets, TOKENS, attribution_targets=[5], engine="autograd")
    paths = greedy_paths(lens, sets, TOKENS, 5, leaves=True, **EVERYTHING)
    direct: dict[str, float] = defaultdict(float)
    for path in paths:
        if len(path) > 1 and "head" not in path.nodes[-1] and all("head" in name for name in path.nodes[1:-1]):
            direct[path.nodes[-1]] += path.contribution
    target = graph.node_ids().index(paths.meta["root"])
    row = slice(int(graph.indptr[target]), int(graph.indptr[target + 1]))
    edges = {graph.node_ids()[s]: float(w) for s, w in zip(graph.sources[row], graph.weights[row], strict=True)}
    assert direct == pytest.approx({name: weight for name, weight in edges.items() if weight}, abs=1e-11)


@pytest.mark.parametrize("ln", ["frozen", "ratio"])
def test_every_node_of_a_graph_is_the_sum_of_what_flows_in(ln: str) -> None:
    lens = lens_of("LN-gqa-standard-plain")
    sets = models.random_set(lens, skip=True)
    rest = []
    for branches in (2, 8, None):
        paths = greedy_paths(
            lens, sets, TOKENS, 5, num_iters=3, num_branches=branches, ln=ln, absolute=True, ignore_bos=False
        )
        graph = paths.graph()
        assert graph.check() < 1e-10
        rest.append(abs(as_dicts(graph)[0].get(f"pruned_{graph.ids[0]}", 0.0)))
    assert rest[-1] == 0 < min(rest[:-1])


def test_the_order_of_paths_does_not_matter() -> None:
    lens = lens_of("LN-gqa-standard-plain")
    local = local_model(lens, models.random_set(lens), TOKENS)
    paths = paths_of(lens, local, 5, SearchSettings(4, 30))
    generator = torch.Generator().manual_seed(5)
    levels, order = [paths.levels[0]], torch.zeros(1, dtype=torch.long)
    for level in paths.levels[1:]:
        where = torch.argsort(order)
        order = torch.randperm(len(level), generator=generator)
        shuffled = level[order]
        levels.append(replace(shuffled, parent=where[shuffled.parent]))
    shuffled = replace(paths, levels=levels)
    assert {p.nodes for p in shuffled} == {p.nodes for p in paths}
    a, b = as_dicts(paths.graph()), as_dicts(shuffled.graph())
    assert a[0] == pytest.approx(b[0], abs=1e-12)
    assert a[1] == pytest.approx(b[1], abs=1e-12)


def as_dicts(graph: PathGraph) -> tuple[dict[str, float], dict[tuple[str, str], float]]:
    nodes = dict(zip(graph.ids, graph.contribution.tolist(), strict=True))
    ends = zip(graph.sources.tolist(), graph.targets.tolist(), graph.weights.tolist(), strict=True)
    return nodes, {(graph.ids[s], graph.ids[t]): w for s, t, w in ends}


def test_paths_that_share_a_beginning_count_it_once() -> None:
    lens = lens_of("LN-gqa-standard-plain")
    paths = greedy_paths(lens, models.random_set(lens), TOKENS, 5, num_iters=3, num_branches=25)
    nodes: dict[str, float] = defaultdict(float)
    edges: dict[tuple[str, str], float] = defaultdict(float)
    seen = set()
    for path in paths:  # Algorithm 2 as it is written
        for j in range(len(path)):
            prefix = path.nodes[: j + 1]
            if prefix not in seen:
                seen.add(prefix)
                nodes[prefix[-1]] += path.contributions[j]
                if j:
                    edges[prefix[-1], prefix[-2]] += path.contributions[j]
    found = as_dicts(paths.graph())
    assert {name: found[0][name] for name in nodes} == pytest.approx(dict(nodes), abs=1e-12)
    assert {ends: found[1][ends] for ends in edges} == pytest.approx(dict(edges), abs=1e-12)
    assert {name.split("_")[0] for name in set(found[0]) - set(nodes)} == {"errors", "biases", "pruned"}


def test_a_bias_has_the_coefficients_of_its_path_but_not_in_the_reference_code() -> None:
    lens = lens_of("gpt2-folded")
    sets = models.random_set(lens, hook_in="ln2.hook_normalized")
    options: dict[str, Any] = {"num_iters": 2, "num_branches": 12, "filters": "kind=feature", "ln": "ratio"}
    ours = greedy_paths(lens, sets, TOKENS, 5, **options).graph()
    theirs = greedy_paths(lens, sets, TOKENS, 5, reference=True, **options).graph()
    assert ours.check() < 1e-10
    assert theirs.check() < 1e-10
    parents = [ours.ids[t] for t in ours.targets.unique().tolist() if ours.ids[t][0] in "012"]
    assert parents
    for parent in parents:
        layer, index, _ = map(int, parent.split("_"))
        assert theirs.edge(f"biases_{parent}", parent) == pytest.approx(float(sets[layer].b_enc[index]), abs=1e-12)
        assert abs(ours.edge(f"biases_{parent}", parent) - float(sets[layer].b_enc[index])) > 1e-3


def test_planted_paths_are_found() -> None:
    truth, model, sets = zoo.truth("planted"), zoo.load("planted"), zoo.transcoders("planted")
    for prompt in truth.prompts[::7]:
        state, relation, answer = (f"{layer}_{f}_{pos}" for layer, pos, f in truth.features(prompt))
        word, asked = (next(s for s, t in truth.edges(prompt) if t == feature) for feature in (state, relation))
        paths = greedy_paths(model, sets, prompt.text, prompt.answer, num_iters=4, num_branches=5)
        logit = paths.meta["root"]
        assert paths.of_length(2)[0].nodes == (logit, answer)
        head = "{}_head_{}".format(*truth.state_head)
        expected = {(logit, answer, f"{head}_{state.rpartition('_')[2]}", state, word)}
        if not relation.endswith(f"_{prompt.last}"):  # what is asked is at the end already in some prompts
            head = "{}_head_{}".format(*truth.relation_head)
            expected.add((logit, answer, f"{head}_{relation.rpartition('_')[2]}", relation, asked))
        else:
            assert (logit, answer, relation, asked) in {path.nodes for path in paths.of_length(4)}
        assert expected <= {path.nodes for path in paths.of_length(5)}
        # A path is worth the product of its edges, each as a share of what it flows into.
        edges, active = truth.edges(prompt), activations(model, sets, prompt.text)
        for path in paths.of_length(5):
            if path.nodes in expected:
                _, _, _, feature, source = path.nodes
                product = edges[source, feature] * edges[feature, answer] * edges[answer, logit]
                assert path.contribution == pytest.approx(product / active[feature] / active[answer], rel=1e-4)


def activations(model: Any, sets: Any, prompt: str) -> dict[str, float]:
    graph = pb.attribute(model, sets, prompt)
    return dict(zip(graph.node_ids(), graph.nodes.activation.tolist(), strict=True))


def test_exact_transcoders_leave_no_errors() -> None:
    model, sets = zoo.load("exact", dtype=torch.float64), zoo.transcoders("exact", dtype=torch.float64)
    paths = greedy_paths(model, sets, torch.tensor([1, 5]), 3, num_iters=2, num_branches=None, ignore_bos=False)
    graph = paths.graph()
    assert graph.check() < 1e-10
    errors = [abs(float(c)) for name, c in zip(graph.ids, graph.contribution, strict=True) if name.startswith("errors")]
    assert max(errors, default=0) < 1e-12
