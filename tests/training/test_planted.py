"""Training recovers a planted dictionary (METHODS 1.14-7)."""

from __future__ import annotations

import pytest
import torch

from pullback.training import TrainConfig, TrainStep, train_on_activations


def recovery(directions, transcoder):
    """Mean over true directions of the largest cosine with a decoder row."""
    rows = torch.nn.functional.normalize(transcoder.W_dec, dim=1)
    return float((directions @ rows.T).amax(1).mean())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_features_are_found(planted, seed):
    directions, batch = planted(seed)
    config = TrainConfig(d_sae=128, k=3, lr=3e-3, training_tokens=1000 * 1024, seed=seed)
    pairs = ((x, x) for x in iter(lambda: batch(1024), None))
    transcoder = train_on_activations(pairs, config=config, verbose=False)
    x = batch(4096)
    residual = (x - transcoder(x)).square().sum() / (x - x.mean(0)).square().sum()
    assert recovery(directions, transcoder) >= 0.97
    assert residual < 0.15
    assert transcoder.encode(x).nnz / len(x) == pytest.approx(3, abs=0.01)


@pytest.mark.slow
def test_features_that_die_are_revived_by_the_auxiliary_loss(planted):
    dead = {}
    for alpha in (1e-9, 1 / 32):
        _, batch = planted(0)
        step = TrainStep(32, 32, 128, k=3, lr=3e-3, auxk_alpha=alpha, dead_feature_window=5_000)
        for i in range(200):
            x = batch(512)
            step(x, x)
            if i == 0:
                # Positive now and then, but too low to win against the other 88.
                with torch.no_grad():
                    step.transcoder.b_enc[:40] = -1.2
        dead[alpha] = float(step.stats.dead)
    assert dead[1e-9] > 0.25
    assert dead[1 / 32] < 0.8 * dead[1e-9]
