"""Several processes train on one activation cache: each reads what it trains on, in one order."""

from __future__ import annotations

import os
import signal

import pytest
import torch.distributed as dist

from pullback.training import CachedActivations, TrainConfig, cached, train_on_cache
from pullback.transcoders import load_transcoders
from tests.training.distributed.conftest import Failed
from tests.training.distributed.test_equality import SETTINGS, distance, weights
from tests.training.test_cache import flip, make

KINDS = {"per-layer": {}, "cross-layer": {"cross_layer": True, "decoder_tying": "per_source"}}


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setattr("pullback.lens.as_lens", lambda model: model)


@pytest.fixture
def path(tmp_path):
    make(tmp_path / "cache")
    return tmp_path / "cache"


def run(path, parallel, kind="per-layer", stop_at=None, on_corrupt="refuse", **options):
    """In which one process is told to stop at a batch."""
    config = TrainConfig(**SETTINGS | KINDS[kind] | {"parallel": parallel})
    original, seen = cached.CachedBatches.__next__, []

    def counted(self):
        seen.append(list(self._layers))
        if len(seen) == stop_at and parallel == "none":
            raise KeyboardInterrupt
        if len(seen) == stop_at and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    cached.CachedBatches.__next__ = counted
    try:
        cache = CachedActivations(path, on_corrupt=on_corrupt)
        found = weights(train_on_cache(cache, config, verbose=False, **options))
        return found, seen[-1], cache.corrupt
    finally:
        cached.CachedBatches.__next__ = original


@pytest.mark.parametrize(
    ("kind", "parallel"),
    [
        ("per-layer", "layers"), ("per-layer", "features"), ("per-layer", "data"),
        ("cross-layer", None), ("cross-layer", "data"),
    ],
)  # fmt: skip
def test_one_process_or_two(two, path, kind, parallel):
    alone, *_ = run(path, "none", kind)
    (first, read, _), (second, other, _) = two(run, path, parallel, kind, output_path=path.parent / "out")
    assert (read, other) == (([0], [1]) if parallel == "layers" else ([0, 1], [0, 1]))
    assert distance(first, second) == 0
    assert distance(first, alone) <= (0 if parallel == "layers" else 1e-10)
    assert distance(weights(load_transcoders(path.parent / "out")), first) == 0


@pytest.mark.parametrize(
    ("kind", "first", "then"),
    [("per-layer", "layers", "layers"), ("per-layer", "none", "layers"), ("cross-layer", "features", "none")],
)
def test_a_stopped_run_goes_on(two, path, kind, first, then):
    def trained(parallel, **options):
        if parallel == "none":
            return run(path, parallel, kind, **options)[0]
        return two(run, path, parallel, kind, **options)[0][0]

    whole = trained(then)
    where = {"checkpoint_path": path.parent / "run", "checkpoint_every_tokens": 1200, "resume": True}
    with pytest.raises((Failed, KeyboardInterrupt)):
        trained(first, stop_at=20, **where)
    assert (path.parent / "run" / "latest").read_text() == "tokens_000000001212"
    found = trained(then, **where)
    assert distance(found, whole) <= (0 if first == then else 1e-9)


def test_all_leave_out_what_is_damaged(two, path):
    flip(path / "shard_00002.safetensors")
    with pytest.warns(UserWarning, match="it is left out"):
        alone, _, corrupt = run(path, "none", on_corrupt="skip")
    assert corrupt == ["shard_00002.safetensors"]
    for found, _, left_out in two(run, path, "features", on_corrupt="skip"):
        assert left_out == corrupt
        assert distance(found, alone) <= 1e-10
    with pytest.raises(Failed) as failed:
        two(run, path, "features")
    assert ["its sha256 differs" in said for _, said, _ in failed.value.errors] == [True, True]
