"""The background thread: order, exceptions, and that it always ends."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from pullback.training import TrainConfig, train
from pullback.training.producer import Prefetched


def threads():
    return [t for t in threading.enumerate() if t.name == "pullback-producer"]


@pytest.mark.parametrize("slow", ["producer", "consumer", "neither"])
def test_the_order_does_not_depend_on_timing(slow):
    def items():
        for i in range(12):
            time.sleep(0.004 * (slow == "producer"))
            yield i

    got = []
    for item in Prefetched(items, 2):
        time.sleep(0.004 * (slow == "consumer"))
        got.append(item)
    assert got == list(range(12))
    assert not threads()


def test_it_runs_ahead_by_its_depth_only():
    made = []

    def items():
        for i in range(100):
            made.append(i)
            yield i

    with Prefetched(items, 3) as ahead:
        assert next(ahead) == 0
        time.sleep(0.3)
        assert len(made) <= 1 + 3 + 1
    assert not threads()
    assert list(ahead) == []


@pytest.mark.parametrize("error", [ValueError("spoilt"), KeyboardInterrupt()])
def test_exceptions_come_out_where_the_item_would_have(error):
    def items():
        yield 1
        raise error

    ahead = Prefetched(items, 4)
    assert next(ahead) == 1
    with pytest.raises(type(error)):
        next(ahead)
    assert not threads()
    assert list(ahead) == []


def test_closing_runs_the_generators_own_clean_up():
    closed = []

    def items():
        try:
            while True:
                yield 0
        finally:
            closed.append(True)

    with Prefetched(items, 1) as ahead:
        next(ahead)
    assert closed == [True]
    assert not threads()


def test_a_depth_of_nothing_is_refused():
    with pytest.raises(ValueError, match="depth must be at least 1"):
        Prefetched(lambda: iter(()), 0)


def test_training_is_the_same_with_and_without_and_leaves_no_thread(lens, tokens):
    settings = {"d_sae": 48, "k": 8, "training_tokens": 2000, "train_batch_size_tokens": 100}
    without, with_thread = (train(lens, tokens, TrainConfig(**settings, prefetch=n), verbose=False) for n in (0, 2))
    assert all(torch.equal(without[l].W_enc, with_thread[l].W_enc) for l in without)
    assert not threads()
    with pytest.raises(ValueError, match="nothing to train on"):
        train(lens, iter([]), TrainConfig(**settings, prefetch=2), verbose=False)
    assert not threads()
