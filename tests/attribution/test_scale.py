"""What keeps large graphs small: rules for edges, batches that shrink, rows that do not depend on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pullback as pb
from pullback.attribution import Graph, Settings, batches, gather, stack
from pullback.attribution import nodes as k
from pullback.attribution.explained import explained
from pullback.attribution.local import local_model
from pullback.attribution.rules import EdgeRule
from pullback.lens import as_lens
from tests import models
from tests.attribution.test_identities import _dense, assert_same_edges, tokens_of

PLAIN = "LN-gqa-standard-plain"


@given(
    data=st.lists(st.lists(st.integers(-4, 4), min_size=5, max_size=5), min_size=1, max_size=4),
    mass=st.sampled_from([0.1, 0.5, 0.75, 0.9, 1.0]),
    per_target=st.sampled_from([None, 1, 2, 3, 9]),
)
def test_a_rule_keeps_the_fewest_edges(data: list[list[int]], mass: float, per_target: int | None) -> None:
    block = torch.tensor(data, dtype=torch.float64)
    for edges, kept in zip(data, EdgeRule(mass, per_target).kept(block).tolist(), strict=True):
        order = sorted(range(5), key=lambda s: (-abs(edges[s]), s))
        expected, total = [False] * 5, sum(map(abs, edges))
        covered = 0
        for n, s in enumerate(order):
            if edges[s] and covered < mass * total and (per_target is None or n < per_target):
                expected[s] = True
                covered += abs(edges[s])
        assert kept == expected


@pytest.mark.parametrize("options", [{"edges_per_target": 7}, {"edge_mass": 0.7}], ids=str)
def test_graphs_of_kept_edges_still_sum(options: dict[str, Any]) -> None:
    lens = as_lens(models.build(PLAIN))
    sets, tokens = models.random_set(lens), tokens_of(6)
    whole = pb.attribute(lens, sets, tokens)
    small = pb.attribute(lens, sets, tokens, **options)
    assert small.node_ids() == whole.node_ids()
    assert small.check() <= 1e-9
    assert small.n_edges < whole.n_edges / 2
    kept = _dense(small)
    full = _dense(whole)
    assert torch.allclose(kept[kept != 0], full[kept != 0], atol=1e-12)
    targets = whole.of_kind(k.FEATURE, k.LOGIT)
    others = ~whole.of_kind(k.OWN)
    sizes, left = full[targets][:, others].abs(), kept[targets][:, others].abs()
    if "edges_per_target" in options:
        assert int((left > 0).sum(1).max()) == 7
    else:
        assert bool((left.sum(1) >= 0.7 * sizes.sum(1) - 1e-12).all())
    smallest_kept = torch.where(left > 0, left, torch.inf).amin(1)
    largest_cut = torch.where(left > 0, 0.0, sizes).amax(1)
    assert bool((smallest_kept >= largest_cut - 1e-12).all())
    own = whole.of_kind(k.OWN)
    assert torch.allclose(kept[:, own], full[:, own], atol=1e-12), "a target's own constant always stays"


def test_a_kept_edge_ranks_by_its_share_of_the_whole_row() -> None:
    """Where little is kept of a row, its few edges must not count as if they were all of it."""
    lens = as_lens(models.build(PLAIN))
    local = local_model(lens, models.random_set(lens), tokens_of(6))

    def ranked(settings: Settings) -> torch.Tensor:
        what = explained(lens, local)
        rows = batches.Batches(lens, local, what, settings)
        rows.run()
        return rows.edges.influence(what)

    whole, few = ranked(Settings()), ranked(Settings(edges_per_target=5))
    assert bool((few <= whole + 1e-12).all())
    assert 0 < float(few.sum()) < 0.7 * float(whole.sum())


@pytest.mark.parametrize("limit", [10, 40])
def test_selection_stays_sensible_where_few_edges_are_kept(limit: int) -> None:
    lens = as_lens(models.build(PLAIN))
    sets, tokens = models.random_set(lens), tokens_of(6)

    def chosen(**options: Any) -> set[str]:
        graph = pb.attribute(lens, sets, tokens, max_feature_nodes=limit, batch_size=4, update_interval=1, **options)
        assert graph.check() <= 1e-9
        return set(graph.to_pandas()[0].query("kind == 'feature'")["id"])

    assert len(chosen() & chosen(edge_mass=0.9)) >= 0.8 * limit


@pytest.mark.parametrize("options", [{"edge_mass": 0.0}, {"edge_mass": 1.5}, {"edges_per_target": 0}], ids=str)
def test_rules_without_meaning_are_refused(options: dict[str, Any]) -> None:
    lens = as_lens(models.build(PLAIN))
    with pytest.raises(ValueError, match=next(iter(options))):
        pb.attribute(lens, models.random_set(lens), tokens_of(3), **options)


class _Memory:
    """An engine that runs out of memory where more than `room` targets come at once."""

    def __init__(self, room: int) -> None:
        self.room, self.sizes = room, []

    def __call__(self, local: Any, targets: Any) -> Any:
        self.sizes.append(len(targets))
        if len(targets) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return gather.linear_rows(local, targets)


@pytest.mark.parametrize("limit", [None, 30])
def test_a_batch_that_does_not_fit_is_halved(
    limit: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lens = as_lens(models.build(PLAIN))
    sets, tokens = models.random_set(lens), tokens_of(6)
    options = {"batch_size": 16, "update_interval": 1, "max_feature_nodes": limit}
    whole = pb.attribute(lens, sets, tokens, max_n_logits=3, **options)
    memory = _Memory(room=5)
    monkeypatch.setattr(batches, "linear_rows", memory)
    if limit is None:
        assert_same_edges(pb.attribute(lens, sets, tokens, max_n_logits=3, **options), whole, 1e-12)
    else:
        assert pb.attribute(lens, sets, tokens, max_n_logits=3, **options).check() <= 1e-9
    alone = [3] if limit else []  # what is explained, where features are chosen by what it reads
    assert memory.sizes[: len(alone) + 3] == [*alone, 16, 8, 4]
    assert max(memory.sizes[len(alone) + 2 :]) == 4
    assert "16 targets do not fit into memory together: going on with 8" in capsys.readouterr().out
    memory.room = 0
    with pytest.raises(torch.OutOfMemoryError):
        pb.attribute(lens, sets, tokens, **options)


def test_other_errors_are_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_local: Any, _targets: Any) -> Any:
        raise RuntimeError("something else")

    lens = as_lens(models.build(PLAIN))
    monkeypatch.setattr(batches, "linear_rows", broken)
    with pytest.raises(RuntimeError, match="something else"):
        pb.attribute(lens, models.random_set(lens), tokens_of(3))


def test_a_verbose_run_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    lens = as_lens(models.build(PLAIN))
    graph = pb.attribute(lens, models.random_set(lens), tokens_of(6), verbose=True, batch_size=16)
    n = int(graph.of_kind(k.FEATURE).sum())
    said = capsys.readouterr().out
    assert f"{n} features in batches of 16\n" in said
    assert "batch of targets: " in said
    assert said.count("memory") == 1, "what it takes is said once"


@pytest.mark.parametrize("name", [PLAIN, "RMS-gqa-rotary-gated", "neox-parallel"])
def test_float32_rows_do_not_depend_on_batch_mates(name: str) -> None:
    lens = as_lens(models.build(name, torch.float32))
    sets, tokens = models.random_set(lens), tokens_of(9)
    alone, few, many = (_rows(pb.attribute(lens, sets, tokens, batch_size=b)) for b in (1, 7, 512))
    scale = many.abs().amax(1, keepdim=True).clamp(min=1e-30)
    assert float(((alone - many) / scale).abs().max()) <= 1e-6
    assert float(((few - many) / scale).abs().max()) <= 1e-6


def _rows(graph: Graph) -> torch.Tensor:
    return _dense(graph)[graph.of_kind(k.FEATURE, k.LOGIT)]


@pytest.mark.parametrize("name", ["LN-gqa-standard-plain", "neox-parallel"])
@pytest.mark.parametrize(("carried", "blocks"), [(1 << 22, 0), (64, 1 << 20)])
def test_the_first_layer_is_read_in_any_of_three_ways(
    monkeypatch: pytest.MonkeyPatch, name: str, carried: int, blocks: int
) -> None:
    """What its attention writes kept, written a block at a time, or gradients pulled through as in other layers."""
    lens = as_lens(models.build(name))
    sets = models.random_set(lens)
    kept = pb.attribute(lens, sets, tokens_of(7))
    monkeypatch.setattr(stack, "CARRIED", carried)
    monkeypatch.setattr(stack, "BLOCKS", blocks)
    assert_same_edges(pb.attribute(lens, sets, tokens_of(7)), kept, 1e-12)
