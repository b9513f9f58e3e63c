"""Who holds what, and how features and tokens are chosen together."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pullback.ops import SparseActivations, batch_topk_encode, topk_encode
from pullback.training import Recipe, TrainStep
from pullback.training.distributed import FeatureShare, Layout, World
from pullback.training.distributed.shares import block
from pullback.training.initial import initial_weights
from pullback.transcoders import ReLU


@pytest.mark.parametrize(("d_sae", "d"), [(2500, 16), (3000, 7), (1025, 3), (40, 5)])
def test_shares_start_where_the_whole_starts(d_sae, d):
    settings = d, d + 1, d_sae, True, "tenth", 5, torch.float32
    whole = initial_weights(*settings)
    for size in (2, 3):
        parts = [initial_weights(*settings, held=block(place, size, d_sae)) for place in range(size)]
        for all_rows, rows in zip(whole, zip(*parts, strict=True), strict=True):
            torch.testing.assert_close(torch.cat(rows), all_rows, rtol=1e-6, atol=0)


def layout(size, parallel, layers=(0, 1, 2, 3, 4)):
    return Layout(SimpleNamespace(size=size, rank=0), parallel, layers)


@pytest.mark.parametrize(("n", "size"), [(49, 2), (48, 5), (7, 7), (2**20 + 1, 8)])
def test_blocks_are_those_of_chunk(n, size):
    blocks = [block(place, size, n) for place in range(size)]
    assert [b.stop - b.start for b in blocks if b.stop > b.start] == [len(c) for c in torch.arange(n).chunk(size)]
    assert [b.start for b in blocks][1:] == [b.stop for b in blocks][:-1]


def test_layers_are_spread_evenly():
    assert layout(2, None).owners == {0: [0], 1: [0], 2: [1], 3: [1], 4: [1]}
    assert layout(8, None, [3]).owners == {3: list(range(8))}
    assert layout(3, "data").owners == dict.fromkeys(range(5), [0, 1, 2])


def test_divisions_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"is for 6 processes, and there are 4"):
        layout(4, [3, 2])
    with pytest.raises(ValueError, match=r"cannot be divided among 6 processes; choose .*like \[5, 1\]"):
        layout(6, "layers")
    few = FeatureShare(SimpleNamespace(rank=0, size=4))
    with pytest.raises(ValueError, match="with 2 in each, the last one has none"):
        few.features(5)
    with pytest.raises(ValueError, match="ghost gradients, which need all features in one process"):
        TrainStep(4, 4, 9, activation=ReLU(), share=few, recipe=Recipe(loss="reference"))


def chosen(kind, seed):
    """What this process keeps of its block of features, on numbers with many ties."""
    random = torch.Generator().manual_seed(seed)
    x, W = (torch.randint(-2, 3, (n, 6), generator=random).float() for n in (9, 23))
    b, k = torch.randint(-1, 2, (23,), generator=random).float(), 5
    with World(torch.device("cpu")) as world:
        share = FeatureShare(world)
        own = share.features(23)
        if kind == "batch":
            candidates = batch_topk_encode(x, W[own], b[own], k)
            return share.best_of_batch(candidates, k).to_dense(), batch_topk_encode(x, W, b, k).to_dense()[:, own]
        values, ids = topk_encode(x, W[own], b[own], k, relu=kind == "relu")
        kept = SparseActivations.from_topk(share.best(values, k, relu=kind == "relu"), ids, own.stop - own.start)
        whole = SparseActivations.from_topk(*topk_encode(x, W, b, k, relu=kind == "relu"), 23)
        return kept.to_dense(), whole.to_dense()[:, own]


@pytest.mark.parametrize("kind", ["relu", "negative", "batch"])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_of_all_features_with_ties(two, kind, seed):
    for kept, wanted in two(chosen, kind, seed):
        assert torch.equal(kept, wanted)
