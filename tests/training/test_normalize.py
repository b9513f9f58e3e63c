"""Activations brought to one size: learned from in that size, saved for raw ones."""

from __future__ import annotations

import math

import pytest
import torch

from pullback.training import TrainConfig, TrainingDiverged, train, train_on_activations
from pullback.training.normalize import Scale
from pullback.training.runs import new_run
from pullback.transcoders import load_transcoders
from tests.training.test_rules import rows

NORMAL = {"normalize_activations": "expected_average_only_in"}
SMALL = {"d_sae": 48, "k": 8, "training_tokens": 1200, "train_batch_size_tokens": 100, "lr": 1e-2}
CASES = {
    "topk": {"skip_connection": True},
    "batchtopk": {"architecture": "batchtopk"},
    "jumprelu": {"architecture": "jumprelu"},
    "relu": {"architecture": "standard", "l1_coefficient": 0.1},
    "autoencoder": {"hook_name": "hook_mlp_out"},
}


def test_factors_bring_rows_to_the_root_of_their_width():
    scale = Scale.of(5 * rows(200, 9), 0.1 * rows(200, 4))
    x, y = scale.applied(5 * rows(200, 9), 0.1 * rows(200, 4), torch.float64)
    assert float(x.norm(dim=1).mean()) == pytest.approx(3)
    assert float(y.norm(dim=1).mean()) == pytest.approx(2)
    assert Scale.of(torch.zeros(3, 2), torch.full((3, 2), torch.nan)) == (1.0, 1.0)


@pytest.mark.parametrize("case", CASES)
def test_the_folded_transcoder_does_the_same_of_raw_activations(case):
    config = TrainConfig(**SMALL, **NORMAL, **CASES[case], dtype="float64")
    run = new_run(config, {3: (6, 6)}, torch.device("cpu"), {})
    for i in range(5):
        run.step([200 * rows(100, 6, i) + 30, 0.01 * rows(100, 6, 50 + i)], 1e-2)
    scale, own, folded = run._scales[3], run.steps[3].transcoder, run.dictionary()[3]
    x = 200 * rows(100, 6, 9) + 30
    inside, outside = own.encode(scale.x * x), folded.encode(x)
    assert torch.equal(inside.indices, outside.indices)
    torch.testing.assert_close(outside.values, inside.values, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(folded(x), own(scale.x * x) / scale.y, rtol=1e-12, atol=1e-14)
    assert folded.activation == own.activation
    if case == "autoencoder":
        assert scale.x == scale.y


def test_the_size_of_activations_does_not_matter(planted):
    _, batch = planted(0)
    x = batch(1000).double()
    config = TrainConfig(**SMALL, **NORMAL, dtype="float64")
    small, large = (train_on_activations(s * x, t * x + t, config, verbose=False) for s, t in ((1, 1), (1000, 0.001)))
    torch.testing.assert_close(1000 * large.W_enc, small.W_enc, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(1000 * large.W_dec, small.W_dec, rtol=1e-6, atol=1e-8)
    assert (x + 1 - small(x)).square().sum() < 0.5 * (x - x.mean(0)).square().sum()


def test_a_run_resumes_to_the_bit_and_its_checkpoints_take_raw_activations(lens, tokens, tmp_path):
    config = TrainConfig(**SMALL, **NORMAL, skip_connection=True)
    options = {"checkpoint_path": tmp_path, "checkpoint_every_tokens": 300, "verbose": False}

    def stream():
        while True:
            yield tokens

    def interrupted():
        for _ in range(5):
            yield tokens
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(lens, interrupted(), config, **options)
    (kept,) = (tmp_path / (tmp_path / "latest").read_text().strip()).glob("transcoders")
    x, y = (rows.flatten(0, 1) for rows in lens.mlp_io(tokens)[1])
    error = (load_transcoders(kept)[1](x) - y).square().sum() / (y - y.mean(0)).square().sum()
    assert error < 0.9
    resumed = train(lens, stream(), config, resume=True, **options)
    whole = train(lens, stream(), config, verbose=False)
    for layer in whole:
        for a, b in zip(resumed[layer].parameters(), whole[layer].parameters(), strict=True):
            assert torch.equal(a, b)


def test_figures_are_those_of_raw_targets():
    config = TrainConfig(**SMALL, **NORMAL, dtype="float64")
    x, y = rows(100, 6), 50 * rows(100, 6, 1)
    run = new_run(config, {0: (6, 6)}, torch.device("cpu"), {})
    run.step([x, y], 1e-2)
    figures = run.figures()[0]
    variance = float((y - y.mean(0)).square().sum(1).mean())
    assert figures["losses/mse_loss"] == pytest.approx(figures["metrics/fvu"] * variance)


def test_nan_in_the_first_batch_is_named_and_the_weights_can_be_had():
    run = new_run(TrainConfig(**SMALL, **NORMAL), {0: (6, 6)}, torch.device("cpu"), {})
    bad = rows(100, 6).float()
    bad[2, 1] = math.nan
    with pytest.raises(TrainingDiverged, match="layer 0: 1 of 100 inputs") as caught:
        run.step([bad, rows(100, 6).float()], 1e-2)
    assert caught.value.transcoder is not None
    assert run.dictionary()[0].W_enc.isfinite().all()
