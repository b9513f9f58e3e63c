"""Training recovers a planted dictionary, by every sparsity rule (METHODS 1.14-7, 1.14-8)."""

from __future__ import annotations

import pytest
import torch

from pullback.training import TrainConfig, TrainStep, train_on_activations
from tests.training.matching import best_matching

JUMPRELU = {
    "architecture": "jumprelu",
    "l0_coefficient": 0.02,
    "l0_warm_up_steps": 300,
    "jumprelu_bandwidth": 0.5,
    "jumprelu_init_threshold": 0.3,
}
RULES = {
    "topk": {},
    "batchtopk": {"architecture": "batchtopk"},
    "jumprelu": JUMPRELU,
    "jumprelu, tanh": JUMPRELU
    | {"jumprelu_sparsity_loss_mode": "tanh", "weight_by_decoder_norm": True, "pre_act_loss_coefficient": 1e-3},
    "relu": {"architecture": "standard", "l1_coefficient": 0.3, "l1_warm_up_steps": 100},
    "relu, reference": {"architecture": "standard", "loss": "reference", "l1_coefficient": 6e-3},
    "matryoshka topk": {"matryoshka_widths": [32, 64]},
    "matryoshka batchtopk": {"architecture": "matryoshka_batchtopk", "matryoshka_widths": [32, 64]},
}
FAST = {"d_sae": 128, "k": 3, "lr": 5e-3, "train_batch_size_tokens": 512, "training_tokens": 800 * 512}


def cosines(directions, transcoder):
    """Of true directions with decoder rows."""
    return directions @ torch.nn.functional.normalize(transcoder.W_dec, dim=1).T


def recovery(directions, transcoder):
    """Mean over true directions of the largest cosine with a decoder row."""
    return float(cosines(directions, transcoder).amax(1).mean())


def unexplained(y, y_hat):
    return float((y - y_hat).square().sum() / (y - y.mean(0)).square().sum())


def trained(batch, config):
    return train_on_activations(iter(lambda: batch(config.train_batch_size_tokens), None), config=config, verbose=False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_features_are_found(planted, seed):
    directions, batch = planted(seed)
    config = TrainConfig(d_sae=128, k=3, lr=3e-3, training_tokens=1000 * 1024, seed=seed)
    transcoder = trained(lambda n: (x := batch(n), x), config)
    x = batch(4096)
    assert recovery(directions, transcoder) >= 0.97
    assert unexplained(x, transcoder(x)) < 0.15
    assert transcoder.encode(x).nnz / len(x) == pytest.approx(3, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_planted_features_are_found_by_every_rule(planted, rule):
    directions, batch = planted(11)
    transcoder = trained(lambda n: (x := batch(n), x), TrainConfig(**FAST, **RULES[rule], seed=5))
    found = cosines(directions, transcoder)
    x = batch(4096)
    l0 = transcoder.encode(x).nnz / len(x)
    assert float(found.amax(1).mean()) >= 0.97
    assert best_matching(found) >= 0.9
    assert unexplained(x, transcoder(x)) < 0.12
    assert l0 == pytest.approx(3, abs=0.3) if "topk" in rule or "jumprelu" in rule else l0 < 10


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["topk", "batchtopk", "jumprelu", "relu", "matryoshka batchtopk"])
def test_the_skip_path_learns_what_no_feature_is(rule):
    """Targets are features of the first 32 inputs plus a linear map of the 8 others."""
    g = torch.Generator().manual_seed(21)
    directions = torch.nn.functional.normalize(torch.randn(64, 32, generator=g), dim=1)
    effects = torch.nn.functional.normalize(torch.randn(64, 32, generator=g), dim=1)
    W_skip = torch.randn(32, 8, generator=g) / 32**0.5

    def drawn(n):
        chosen = torch.rand(n, 64, generator=g).topk(3, dim=1).indices
        z = torch.zeros(n, 64).scatter(1, chosen, torch.rand(n, 3, generator=g) + 0.5)
        u = 0.5 * torch.randn(n, 8, generator=g)
        return z, (torch.cat([z @ directions, u], 1), z @ effects + u @ W_skip.T)

    transcoder = trained(lambda n: drawn(n)[1], TrainConfig(**FAST, **RULES[rule], skip_connection=True))
    z, (x, y) = drawn(4096)
    assert (transcoder.W_skip[:, 32:] - W_skip).norm() < 0.02 * W_skip.norm()
    # The linear part of what features do may go either way, so they are known by when they fire.
    features = transcoder.encode(x).to_dense()
    assert best_matching(torch.corrcoef(torch.cat([z, features], 1).T)[:64, 64:].nan_to_num()) >= 0.85
    assert unexplained(y, transcoder(x)) < 0.06


@pytest.mark.slow
def test_more_l1_leaves_fewer_features_and_a_larger_error(planted):
    l0, error = [], []
    for coefficient in (0.05, 0.1, 0.2, 0.4):
        _, batch = planted(12)
        config = TrainConfig(
            **FAST | {"training_tokens": 300 * 512}, architecture="standard", l1_coefficient=coefficient
        )
        transcoder = trained(lambda n, batch=batch: (x := batch(n), x), config)
        x = batch(2048)
        l0.append(transcoder.encode(x).nnz / len(x))
        error.append(unexplained(x, transcoder(x)))
    assert all(b < 1.02 * a for a, b in zip(l0, l0[1:], strict=False))
    assert all(b > 0.98 * a for a, b in zip(error, error[1:], strict=False))
    assert l0[0] > 2 * l0[-1]
    assert error[-1] > 2 * error[0]


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
