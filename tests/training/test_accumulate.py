"""A batch worked through in parts, and several batches in one update."""

from __future__ import annotations

import pytest
import torch

from pullback.training import TrainConfig, TrainStep, train, train_on_activations
from tests.training.test_rules import RECIPES, a_step, captured, rows

# BatchTopK chooses over the rows it is shown.
ROW_BY_ROW = [case for case in RECIPES if "batchtopk" not in case and case != "matryoshka, reference"]


def trained(step, batches):
    """The figures and gradients of every step."""
    gradients, found = captured(step), []
    for x, y in batches:
        loss = step(x, y)
        found.append({"loss": loss, **step.stats._asdict()})
    return found, gradients


@pytest.mark.parametrize("case", ROW_BY_ROW)
@pytest.mark.parametrize("size", [1, 7, 20])
def test_parts_make_the_update_of_the_whole(case, size):
    batches = [(rows(20, 6, 10 + i), rows(20, 6, 20 + i) + 1) for i in range(4)]
    how = {"auxk_k": 3, "auxk_alpha": 0.5, "dead_feature_window": 30, "skip_connection": True, "max_grad_norm": 1.0}
    whole, parted = (a_step(case, micro_batch_size=at_once, **how) for at_once in (None, size))
    for step in (whole, parted):
        step.tokens_since_fired[:5] = 30
    (figures, gradients), (own_figures, own_gradients) = (trained(step, batches) for step in (whole, parted))
    for wanted, got in zip(figures + gradients, own_figures + own_gradients, strict=True):
        for name in wanted:
            torch.testing.assert_close(got[name], wanted[name], rtol=1e-9, atol=1e-11, msg=name)
    for name, weight in whole.transcoder.named_parameters():
        torch.testing.assert_close(dict(parted.transcoder.named_parameters())[name], weight, rtol=1e-7, atol=1e-9)
    assert torch.equal(parted.tokens_since_fired, whole.tokens_since_fired)
    assert parted.n_tokens == whole.n_tokens == 80
    torch.testing.assert_close(parted._variance.scatter, whole._variance.scatter)


def test_batch_topk_chooses_in_each_part():
    step = a_step("batchtopk", micro_batch_size=4)
    step(rows(8, 6), rows(8, 6, 1))
    assert float(step.stats.l0) == 3
    assert float(step.rule.state_dict()["threshold_mass"]) == pytest.approx(1 - 0.99**2)


def test_what_does_not_fit_is_halved_and_said(capsys):
    """An update that ran out of memory leaves nothing behind."""
    whole, short = (a_step("topk") for _ in range(2))
    objective, sizes = short.objective, []

    def limited(tc, x, *rest):
        sizes.append(len(x))
        if len(x) > 5:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return objective(tc, x, *rest)

    short.objective = limited
    for i in range(3):
        batch = rows(20, 6, i), rows(20, 6, 9 + i)
        torch.testing.assert_close(short(*batch), whole(*batch))
    assert sizes == [20, 10] + [5] * 12
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "20 rows do not fit into memory in one training step: going on in parts of 10"
    assert len(said) == 2
    for parted, weight in zip(short.transcoder.parameters(), whole.transcoder.parameters(), strict=True):
        torch.testing.assert_close(parted, weight)
    assert torch.equal(short.tokens_since_fired, whole.tokens_since_fired)


@pytest.mark.parametrize("error", [MemoryError(), ValueError("out of memory")])
def test_other_errors_and_a_single_row_are_not_retried(error):
    step = a_step("topk")
    calls = []

    def failing(tc, x, *rest):  # noqa: ARG001
        calls.append(len(x))
        raise error

    step.objective = failing
    with pytest.raises(type(error)):
        step(rows(4, 6), rows(4, 6, 1))
    assert calls == ([4, 2, 1] if isinstance(error, MemoryError) else [4])


def test_parts_are_remembered_by_a_checkpoint():
    step = a_step("topk", micro_batch_size=3)
    step(rows(8, 6), rows(8, 6, 1))
    again = TrainStep(6, 6, 13, activation=step.activation, dtype=torch.float64)
    again.load_state_dict(step.state_dict())
    assert again.micro_batch_size == 3


def test_accumulated_batches_are_one_large_batch(planted):
    _, batch = planted(0)
    pairs = [(x, 2 * x + 1) for x in (batch(50).double() for _ in range(9))]
    large = [tuple(map(torch.cat, zip(*pairs[i : i + 3], strict=True))) for i in (0, 3, 6)]
    settings = {"d_sae": 48, "k": 4, "training_tokens": 450, "lr": 1e-2, "lr_warm_up_steps": 1, "dtype": "float64"}
    small = TrainConfig(**settings, train_batch_size_tokens=50, grad_acc_steps=3)
    whole = TrainConfig(**settings, train_batch_size_tokens=150)
    assert (small.n_steps, small.micro_batch_size, whole.micro_batch_size) == (3, 50, None)
    accumulated = train_on_activations(pairs, config=small, verbose=False)
    at_once = train_on_activations(large, config=whole, verbose=False)
    for a, b in zip(accumulated.parameters(), at_once.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_a_run_that_accumulates_resumes_to_the_bit(lens, tokens, tmp_path):
    config = TrainConfig(
        d_sae=48, k=8, training_tokens=2000, train_batch_size_tokens=100, grad_acc_steps=4, micro_acc_steps=3
    )
    options = {"checkpoint_path": tmp_path, "checkpoint_every_tokens": 400, "verbose": False}

    def stream(n):
        for _ in range(n):
            yield tokens

    def interrupted():
        yield from stream(6)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(lens, interrupted(), config, **options)
    resumed = train(lens, stream(30), config, resume=True, **options)
    whole = train(lens, stream(30), config, verbose=False)
    for layer in whole:
        for a, b in zip(resumed[layer].parameters(), whole[layer].parameters(), strict=True):
            assert torch.equal(a, b)
