"""Checkpoints of several processes: whatever ends a run, it goes on, on as many processes or on another number."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pullback.training import LoggingConfig, TrainConfig, train
from pullback.transcoders import JumpReLU
from tests.training.conftest import ToyLens
from tests.training.distributed.conftest import Failed, free_port
from tests.training.distributed.test_equality import SETTINGS, distance, prompts, weights

ROOT = Path(__file__).parents[3]
EVERY = 1200


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setattr("pullback.lens.as_lens", lambda model: model)


CROSS_LAYER = {
    "topk": {"cross_layer": True},
    "per-target": {"cross_layer": True, "decoder_tying": "per_target", "activation": JumpReLU(0.1)},
}


def checkpointed(path, parallel, stop_at=None, **other):
    """A run with checkpoints, in which one process is told to stop when it reads a batch of prompts."""

    def batches():
        order = torch.Generator().manual_seed(0)
        for i in range(1000):
            if i == stop_at and parallel == "none":
                raise KeyboardInterrupt
            if i == stop_at and dist.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield prompts()[torch.randint(24, (5,), generator=order)]

    settings = SETTINGS | (other or {"architecture": "batchtopk", "skip_connection": True})
    config = TrainConfig(**settings, parallel=parallel)
    where = {"checkpoint_path": path, "checkpoint_every_tokens": EVERY, "resume": True} if path else {}
    report = LoggingConfig(log_every_n_steps=5)
    return weights(train(ToyLens(), batches(), config, verbose=False, logger=report, **where))


@pytest.fixture(scope="module")
def whole(two):
    """whole(parallel, ...) -> the weights of a run that was never stopped"""
    known = {}

    def of(parallel, **other):
        key = parallel, *map(repr, other.items())
        if key not in known:
            alone = parallel == "none"
            run = checkpointed if alone else lambda *args, **more: two(checkpointed, *args, **more)[0]
            known[key] = run(None, parallel, **other)
        return known[key]

    return of


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("layers", "layers"), ("features", "features"), ("data", "data"),
        ("features", "none"), ("none", "features"), ("layers", "features"), ("features", "layers"), ("layers", "none"),
    ],
)  # fmt: skip
def test_a_stopped_run_goes_on_anywhere(two, tmp_path, whole, first, then):
    goes_on(two, tmp_path, whole, first, then)


@pytest.mark.parametrize(
    ("rule", "first", "then"),
    [
        ("topk", "features", "features"), ("topk", "features", "none"), ("topk", "none", "features"),
        ("topk", "data", "features"), ("per-target", "features", "data"), ("per-target", "none", "data"),
    ],
)  # fmt: skip
def test_a_cross_layer_transcoder_goes_on_anywhere(two, tmp_path, whole, rule, first, then):
    goes_on(two, tmp_path, whole, first, then, **CROSS_LAYER[rule])


def goes_on(two, tmp_path, whole, first, then, **other):
    """To the bit where nothing else changes, and to rounding under another division of the work."""
    if first == "none":
        with pytest.raises(KeyboardInterrupt):
            checkpointed(tmp_path, first, stop_at=40, **other)
    else:
        with pytest.raises(Failed) as stopped:
            two(checkpointed, tmp_path, first, stop_at=40, **other)
        assert [kind for kind, *_ in stopped.value.errors] == ["KeyboardInterrupt"] * 2
    assert (tmp_path / "latest").read_text() == "tokens_000000001212"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["latest", "log.jsonl", "tokens_000000001212"]
    if then == "none":
        found = checkpointed(tmp_path, then, **other)
    else:
        found, same = two(checkpointed, tmp_path, then, **other)
        assert distance(found, same) == 0
    assert distance(found, whole(then, **other)) <= (0 if first == then else 1e-9)


CHILD = """
import os, signal, sys
import torch
torch.set_num_threads(1)
import pullback.lens
pullback.lens.as_lens = lambda model: model
from pullback.training.optimizer import Adam
from tests.training.distributed import test_checkpoints as tests
path, rule, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
calls = 0
original = Adam.step
def counted(*args):
    global calls
    calls += 1
    if calls == n and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args)
Adam.step = counted
tests.checkpointed(path, "features", **tests.CROSS_LAYER.get(rule, {}))
"""


def launched(path, rule, n):
    """Two processes, started as `torchrun` starts them; the second kills itself when it is to move a layer's weights
    for the n-th time."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path), rule, str(n)],
            cwd=ROOT,
            env=os.environ
            | {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


@pytest.mark.parametrize("rule", ["batch-topk", "topk"], ids=["per-layer", "cross-layer"])
def test_the_others_of_a_killed_process_end_and_the_run_goes_on(two, tmp_path, whole, rule):
    first, second = launched(tmp_path, rule, n=32)
    start = time.monotonic()
    _, said = first.communicate(timeout=60)
    assert second.wait(5) == -signal.SIGKILL
    assert first.returncode == 1
    assert "another process is gone" in said
    assert "resume=True" in said
    assert time.monotonic() - start < 60
    assert (tmp_path / "latest").read_text() == "tokens_000000001212"
    found, _ = two(checkpointed, tmp_path, "features", **CROSS_LAYER.get(rule, {}))
    assert distance(found, whole("features", **CROSS_LAYER.get(rule, {}))) == 0
