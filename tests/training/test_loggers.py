"""Figures of a run: names, and the loggers that are asked for."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from pullback.training import LoggingConfig, TrainConfig, train

SETTINGS = {"d_sae": 48, "k": 8, "training_tokens": 1000, "train_batch_size_tokens": 100}
NAMES = {
    "losses/overall_loss",
    "losses/mse_loss",
    "losses/auxiliary_reconstruction_loss",
    "metrics/explained_variance",
    "metrics/fvu",
    "metrics/l0",
    "sparsity/dead_features",
}


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in that writes down what it is given."""
    run = SimpleNamespace(given=[], settings=None, ended=False)
    run.log = lambda figures, step: run.given.append((step, figures))
    run.finish = lambda: setattr(run, "ended", True)
    module = ModuleType("wandb")
    module.init = lambda **settings: (setattr(run, "settings", settings), run)[1]  # pyright: ignore
    monkeypatch.setitem(sys.modules, "wandb", module)
    return run


def test_wandb_that_does_not_start_is_a_sentence(lens, tokens, wandb, monkeypatch):
    def init(**_):
        raise RuntimeError("No API key configured")

    monkeypatch.setattr(sys.modules["wandb"], "init", init)
    with pytest.raises(ValueError, match="log_to_wandb: Weights & Biases does not start: No API key"):
        train(lens, tokens, TrainConfig(**SETTINGS), logger=LoggingConfig(log_to_wandb=True), verbose=False)


def test_wandb_gets_the_names_of_saelens(lens, tokens, wandb):
    config = TrainConfig(**SETTINGS)
    logger = LoggingConfig(log_every_n_steps=5, log_to_wandb=True, wandb_project="p", run_name="r")
    train(lens, tokens, config, verbose=False, logger=logger)
    assert [step for step, _ in wandb.given] == [100, 600, 1000]
    assert (wandb.settings["project"], wandb.settings["name"]) == ("p", "r")
    assert wandb.settings["config"]["d_sae"] == 48
    assert wandb.ended
    last = wandb.given[-1][1]
    details = {"details/current_learning_rate", "details/n_training_samples"}
    assert set(last) == NAMES | details | {f"layer_{l}/{name}" for l in (0, 1) for name in NAMES}
    assert last["details/n_training_samples"] == 1000
    assert last["details/current_learning_rate"] == config.lr_at(9)
    assert last["metrics/explained_variance"] == 1 - last["metrics/fvu"]
    assert last["metrics/l0"] == (last["layer_0/metrics/l0"] + last["layer_1/metrics/l0"]) / 2


def test_mse_is_the_squared_error_of_a_token(lens, tokens, wandb):
    config = TrainConfig(**SETTINGS | {"training_tokens": 100, "lr": 1e-12}, layers=[0], n_batches_in_buffer=3)
    sets = train(lens, tokens[:10], config, verbose=False, logger=LoggingConfig(log_to_wandb=True))
    x = lens.W_E[tokens[:10].flatten()]
    y = lens.mlp(0, x)
    expected = (sets[0](x) - y).square().sum(1).mean()
    assert wandb.given[-1][1]["losses/mse_loss"] == pytest.approx(float(expected), rel=0.2)


def test_tensorboard_is_opt_in(lens, tokens, tmp_path, monkeypatch):
    scalars = []

    class Writer:
        def __init__(self, folder, purge_step):
            scalars.append((folder, purge_step))

        def add_scalar(self, *scalar):
            scalars.append(scalar)

        def close(self):
            scalars.append("closed")

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # pyright: ignore
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    train(lens, tokens, TrainConfig(**SETTINGS), verbose=False, logger=LoggingConfig(tensorboard_path=tmp_path))
    assert scalars[0] == (str(tmp_path), None)
    assert ("details/n_training_samples", 1000.0, 1000) in scalars
    assert scalars[-1] == "closed"


@pytest.mark.parametrize(
    ("package", "options"), [("torch.utils.tensorboard", {"tensorboard_path": "x"}), ("wandb", {"log_to_wandb": True})]
)
def test_a_logger_that_is_not_installed_says_so(lens, tokens, monkeypatch, package, options):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match="pip install"):
        train(lens, tokens, TrainConfig(**SETTINGS), verbose=False, logger=LoggingConfig(**options))


def test_nothing_is_imported_unasked(lens, tokens, monkeypatch):
    for package in ("wandb", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, package, None)
    assert isinstance(train(lens, tokens, TrainConfig(**SETTINGS), verbose=False)[0].W_enc, torch.Tensor)
    with pytest.raises(ValueError, match="log_every_n_steps must be at least 1"):
        LoggingConfig(log_every_n_steps=0)
