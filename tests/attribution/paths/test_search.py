"""Which paths are found, and in which order."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import pullback as pb
from pullback.attribution.local import local_model
from pullback.attribution.paths import Paths, SearchSettings, greedy_paths, paths_of
from pullback.lens import as_lens
from tests import models
from tests.attribution.paths import transcription

TOKENS = torch.tensor([3, 7, 11, 19, 2])


def small(name: str = "LN-gqa-standard-plain", **options: Any) -> tuple[Any, Any]:
    lens = as_lens(models.build(name))
    return lens, models.random_set(lens, **options)


def listed(paths: Paths) -> list[list[tuple[tuple[str, ...], float]]]:
    lengths = range(2, len(paths.levels) + 1)
    return [[(path.nodes, path.contribution) for path in paths.of_length(n)] for n in lengths]


def test_each_length_is_the_best_of_all_that_go_on_from_the_one_before() -> None:
    """Against a search that lists every candidate of every path."""
    lens, sets = small(k=2, d_sae=12)
    everything = greedy_paths(lens, sets, TOKENS[:3], 5, num_iters=3, num_branches=None)
    for absolute in (False, True):
        found = greedy_paths(lens, sets, TOKENS[:3], 5, num_iters=3, num_branches=6, absolute=absolute)
        value = abs if absolute else float
        kept = {path.nodes for path in found.of_length(1)}
        for length in (2, 3, 4):
            longer = [p for p in everything.of_length(length) if p.nodes[:-1] in kept and not ends_early(p.nodes)]
            best = sorted(longer, key=lambda p: -value(p.contribution))[:6]
            assert [p.nodes for p in found.of_length(length)] == [p.nodes for p in best]
            kept = {p.nodes for p in best}


def ends_early(nodes: tuple[str, ...]) -> bool:
    """A path that goes on behind the first layer's attention, as only an exhaustive one does."""
    return any(name.startswith("0_head") for name in nodes[:-1])


def test_more_branches_find_a_superset() -> None:
    lens, sets = small()
    found: list[set[tuple[str, ...]]] = []
    for n in (1, 4, 16, None):
        paths = greedy_paths(lens, sets, TOKENS, 5, num_iters=1, num_branches=n)
        found.append({path.nodes for path in paths.of_length(2)})
    assert [len(nodes) for nodes in found[:3]] == [1, 4, 16]
    assert found[0] < found[1] < found[2] < found[3]


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("branches", [3, 7])
def test_the_reference_codes_search_can_be_had(raw: bool, branches: int) -> None:
    lens = as_lens(models.build("gpt2-folded"))
    sets = models.random_set(lens, hook_in="ln2.hook_normalized")
    local = local_model(lens, sets, TOKENS)
    ids, z = local.acts[2].row(4)
    feature = int(ids[z.argmax()])
    theirs = transcription.Search(local, branches, raw=raw)
    expected = theirs.greedy(theirs.root(2, 4, feature), 3)
    settings = SearchSettings(num_iters=3, num_branches=branches, raw=raw, ln="ratio", reference=True)
    ours = paths_of(lens, local, pb.FeatureTarget(2, 4, feature), settings)
    for paths, theirs_of_length in zip(listed(ours), filter(None, expected), strict=True):
        assert {nodes for nodes, _ in paths} == {tuple(v.name for v in path) for path in theirs_of_length}
        assert [c for _, c in paths] == pytest.approx([path[-1].contrib for path in theirs_of_length], rel=1e-9)
    default = paths_of(lens, local, pb.FeatureTarget(2, 4, feature), SearchSettings(3, branches, raw, ln="ratio"))
    assert listed(default) != listed(ours)


def test_a_capped_contribution_is_at_most_the_smallest_activation_on_the_path() -> None:
    lens, sets = small(hook_in="hook_resid_mid")
    local = local_model(lens, sets, TOKENS)
    ids, z = local.acts[2].row(4)
    root = pb.FeatureTarget(2, 4, int(ids[z.argmin()]))
    raw = paths_of(lens, local, root, SearchSettings(2, None, absolute=True))
    capped = paths_of(lens, local, root, SearchSettings(2, None, raw=False, absolute=True))
    active = {
        f"{i}_{f}_{p}": float(v)
        for i, a in local.acts.items()
        for p, f, v in zip(a.rows().tolist(), a.indices.tolist(), a.values, strict=True)
    }
    exact = {path.nodes: path.contribution for path in raw}
    was_capped = 0
    for path in capped:
        least = min((active[name] for name in path.nodes if name in active), default=math.inf)
        expected = math.copysign(min(abs(exact[path.nodes]), least), exact[path.nodes])
        assert path.contribution == pytest.approx(expected, rel=1e-9)
        was_capped += expected != exact[path.nodes]
    assert was_capped > 10
    with pytest.raises(ValueError, match="capped contributions do not sum"):
        capped.graph()


def test_heads_are_not_followed_to_bos() -> None:
    lens, sets = small("llama")
    bos = lens.model.tokenizer.bos_token_id
    tokens = torch.tensor([bos, 4, 9, bos, 6])

    def sources(**options: Any) -> set[int]:
        paths = greedy_paths(lens, sets, tokens, 5, num_branches=None, **options)
        names = (path.nodes[-1].split("_") for path in paths.of_length(2))
        return {int(parts[-1]) for parts in names if "head" in parts}

    assert sources(ignore_bos=False) == {0, 1, 2, 3, 4}
    assert sources() == {1, 2, 4}
    assert sources(reference=True) == {1, 2, 3, 4}


def test_filters_choose_what_paths_go_through() -> None:
    lens, sets = small()
    heads = greedy_paths(lens, sets, TOKENS, 5, filters="kind=head,layer>=1")
    assert all(name.split("_")[1] == "head" and int(name[0]) >= 1 for p in heads for name in p.nodes[1:])
    assert [len(heads.of_length(n)) for n in (2, 3)] == [5, 5]
    either = greedy_paths(lens, sets, TOKENS, 5, filters=["kind=embedding", "kind=feature,layer=0"], num_branches=50)
    assert {p.nodes[-1][0] for p in either.of_length(2)} == {"E", "0"}
    # A rare feature is found, however small; the reference code looks among the best of its layer only.
    ids = local_model(lens, sets, TOKENS).acts[0].row(4)[0].tolist()
    found = [
        greedy_paths(
            lens,
            sets,
            TOKENS,
            5,
            num_iters=1,
            num_branches=1,
            filters=f"layer=0,feature={i}",
            absolute=True,
            reference=reference,
        )
        for i in ids
        for reference in (False, True)
    ]
    ours, theirs = found[::2], found[1::2]
    assert all(len(paths.of_length(2)) == 1 for paths in ours)
    assert sum(len(paths.of_length(2)) for paths in theirs) == 1


def test_paths_are_chosen_by_what_follows_what() -> None:
    lens, sets = small()
    paths = greedy_paths(lens, sets, TOKENS, 5, num_iters=3, num_branches=40)
    every = list(paths)

    def head_then_feature(path: Any) -> bool:
        heads = ["head" in name for name in path.nodes]
        return any(
            a and not b and name[0] not in "EP" for a, b, name in zip(heads, heads[1:], path.nodes[1:], strict=False)
        )

    chosen = paths.where(infix=["kind=head", "kind=feature"])
    assert [p.nodes for p in chosen] == [p.nodes for p in every if head_then_feature(p)]
    assert 0 < len(chosen) < len(paths)
    assert len(paths.where(not_infix=["kind=head", "kind=feature"])) == len(paths) - len(chosen)
    ends = paths.where(suffix=["kind=feature,layer!=0", "kind=head"])
    assert len(ends)
    assert all("head" in p.nodes[-1] and "head" not in p.nodes[-2] and p.nodes[-2][0] != "0" for p in ends)
    feature = pb.FeatureFilter(kind="feature")
    twice = paths.where(suffix=[feature, feature])
    assert len(twice)
    assert all(not any("head" in name or name[0] == "E" for name in p.nodes[-2:]) for p in twice)
    assert len(paths.where(suffix=[feature])) > len(twice)
    frame = chosen.to_pandas()
    assert list(frame.columns) == ["length", "contribution", "nodes", "tokens"]
    assert frame["length"].tolist() == [len(p) for p in chosen]
    first = next(iter(chosen))
    assert str(first).endswith(" <- ".join(f"{n} {t!r}" for n, t in zip(first.nodes, first.tokens, strict=True)))
    words = chosen.meta["str_tokens"]
    assert [words[int(n.rpartition("_")[2])] for n in first.nodes[1:]] == list(first.tokens[1:])


def test_weights_in_files_are_enough(tmp_path: Path) -> None:
    lens, sets = small()
    sets.save(tmp_path)
    lazily = pb.load_transcoders(tmp_path, lazy=True)
    assert listed(greedy_paths(lens, lazily, TOKENS, 5)) == listed(greedy_paths(lens, sets, TOKENS, 5))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_iters": 0}, "num_iters must be at least 1"),
        ({"num_branches": 0}, "num_branches must be at least 1"),
        ({"ln": "none"}, "ln must be one of frozen, ratio"),
        ({"root": [1, 2]}, "give one root"),
        ({"root": None}, "give one root"),
        ({"root": pb.DirectionTarget(torch.ones(16), "blocks.9.hook_mlp_out")}, "layers are 0..2"),
        ({"filters": "layer~3"}, "is no comparison of"),
        ({"filters": "colour=3"}, "is no comparison of"),
        ({"filters": "kind>head"}, "kind is == or !="),
        ({"filters": "kind=neuron"}, "one of embedding"),
        ({"filters": "pos=-1"}, "must be a number from 0"),
    ],
)
def test_what_has_no_meaning_is_refused(options: dict[str, Any], sentence: str) -> None:
    lens, sets = small()
    with pytest.raises(ValueError, match=sentence):
        greedy_paths(lens, sets, TOKENS, **{"root": 5, **options})


def test_a_search_that_memory_should_not_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from pullback.attribution.paths import search

    monkeypatch.setattr(search, "MOST_PATHS", 1000)
    lens, sets = small()
    with pytest.raises(ValueError, match="more than 1,000 paths"):
        greedy_paths(lens, sets, TOKENS, 5, num_iters=None, num_branches=None)
