"""The learning rate's rise, plateau and fall."""

from __future__ import annotations

import math

import pytest

from pullback.training import TrainConfig

HUNDRED = {"training_tokens": 1000, "train_batch_size_tokens": 10, "lr": 1.0}


def rates(**settings):
    config = TrainConfig(**HUNDRED, **settings)
    return [config.lr_at(i) for i in range(config.n_steps)]


def test_the_learning_rate_rises_and_falls_linearly():
    config = TrainConfig(training_tokens=1000, train_batch_size_tokens=10, lr=1.0, lr_warm_up_steps=10)
    rates = [config.lr_at(i) for i in range(config.n_steps)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10:] == pytest.approx([(100 - i) / 90 for i in range(10, 100)])
    late = TrainConfig(training_tokens=1000, train_batch_size_tokens=10, lr=1.0, lr_warm_up_steps=0, lr_decay_steps=20)
    assert [late.lr_at(i) for i in (0, 50, 80, 90, 99)] == pytest.approx([1, 1, 1, 0.5, 0.05])
    assert all(TrainConfig(training_tokens=1, lr_warm_up_steps=n).lr_at(0) > 0 for n in (0, 1, 50))


def test_the_default_is_to_the_bit_what_it_was():
    config = TrainConfig(**HUNDRED | {"lr": 2e-3}, lr_warm_up_steps=7)
    assert [config.lr_at(i) for i in range(100)] == [
        2e-3 * min(1.0, (step + 1) / 7, (100 - step) / 93) for step in range(100)
    ]


def test_a_linear_fall_ends_where_it_is_told():
    found = rates(lr_warm_up_steps=10, lr_decay_steps=50, lr_end=0.2)
    assert found[9:51] == [1.0] * 42
    assert found[50:] == pytest.approx([1 - 0.8 * i / 50 for i in range(50)])


def test_a_cosine_falls_slowly_at_both_ends():
    found = rates(lr_scheduler_name="cosineannealing", lr_warm_up_steps=0)
    assert found == pytest.approx([0.1 + 0.9 * (1 + math.cos(math.pi * i / 100)) / 2 for i in range(100)])
    late = rates(lr_scheduler_name="cosine", lr_warm_up_steps=20, lr_decay_steps=40, lr_end=0.0)
    assert late[:20] == pytest.approx([(i + 1) / 20 for i in range(20)])
    assert late[20:61] == [1.0] * 41
    assert late[61:] == pytest.approx([(1 + math.cos(math.pi * i / 40)) / 2 for i in range(1, 40)])


def test_a_constant_rate_only_rises():
    assert rates(lr_scheduler_name="constant", lr_warm_up_steps=4) == [0.25, 0.5, 0.75] + [1.0] * 97
