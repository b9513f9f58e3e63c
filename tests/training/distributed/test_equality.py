"""Several processes end with the weights of one."""

from __future__ import annotations

import json

import pytest
import torch

from pullback.training import LoggingConfig, TrainConfig, train
from pullback.transcoders import BatchTopK, JumpReLU, ReLU, TopK
from tests.training.conftest import D_VOCAB, ToyLens
from tests.training.distributed.conftest import Processes

SETTINGS = {
    "d_sae": 49,  # no multiple of 2
    "k": 8,
    "training_tokens": 3000,
    "train_batch_size_tokens": 101,
    "lr": 1e-2,
    "lr_warm_up_steps": 5,
    "n_batches_in_buffer": 4,
    "store_batch_size_prompts": 7,
    "dead_feature_window": 150,
    "dtype": "float64",
}
RULES = {
    "topk": {},
    "topk-wide": {"k": 30, "k_start": 40, "k_anneal_steps": 10},  # more than one process holds
    "topk-negative": {"activation": TopK(8, relu=False), "skip_connection": True},
    "norm": {"decoder_norm": True, "max_grad_norm": 0.05, "expansion_factor": 3},
    "batch-topk": {"activation": BatchTopK(8)},
    "relu": {"activation": ReLU(), "weight_by_decoder_norm": True},
    "jumprelu": {"activation": JumpReLU(0.1), "pre_act_loss_coefficient": 1e-3, "max_grad_norm": 0.05},
    "tanh": {"activation": JumpReLU(0.1), "jumprelu_sparsity_loss_mode": "tanh", "weight_by_decoder_norm": True},
    "matryoshka": {"matryoshka_widths": [12, 30]},
    "lazy": {"k": 40, "optimizer": "lazy_adam", "train_batch_size_tokens": 5, "training_tokens": 150},
}


def prompts():
    return torch.randint(1, D_VOCAB, (24, 10), generator=torch.Generator().manual_seed(3))


def weights(sets):
    found = {}
    for layer in sets:
        found |= {f"{layer}/{name}": weight.detach().clone() for name, weight in sets[layer].named_parameters()}
        found[f"{layer}/theta"] = torch.as_tensor(getattr(sets[layer].activation, "theta", 0.0))
        found[f"{layer}/threshold"] = torch.as_tensor(getattr(sets[layer].activation, "threshold", 0.0) or 0.0)
    return found


def run(parallel="none", lens=None, tokens=None, options=None, **settings):
    settings = SETTINGS | settings
    if "expansion_factor" in settings:
        del settings["d_sae"]
    config = TrainConfig(**settings, parallel=parallel)
    tokens = prompts() if tokens is None else tokens
    return weights(train(lens or ToyLens(), tokens, config, verbose=False, **(options or {})))


def distance(a, b):
    """The largest relative distance of two weights."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).norm() / (b[name].norm() + 1e-12)) for name in a)


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setattr("pullback.lens.as_lens", lambda model: model)


@pytest.mark.parametrize("rule", RULES)
def test_one_process_or_two(two, rule):
    alone = run(**RULES[rule])
    for parallel, tolerance in {"layers": 0, "data": 1e-10, "features": 1e-10}.items():
        first, second = two(run, parallel, **RULES[rule])
        assert distance(first, second) == 0, "both have the same set"
        assert distance(first, alone) <= tolerance, parallel


def test_float32(two):
    """The encoders are exact there, so that tokens may be encoded anywhere; sums over features are rounded."""
    alone = run(dtype="float32")
    for parallel, tolerance in {"layers": 0, "data": 0, "features": 1e-5}.items():
        first, second = two(run, parallel, dtype="float32", prefetch=2)
        assert distance(first, second) == 0
        assert distance(first, alone) <= tolerance, parallel


@pytest.mark.parametrize("rule", ["topk", "relu"])
def test_figures_are_of_all_layers_and_features(two, tmp_path, rule):
    report = {"logger": LoggingConfig(log_every_n_steps=10)}

    def log(name):
        lines = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        return {f"{i}/{key}": value for i, line in enumerate(lines) for key, value in line.items()}

    run(options=report | {"checkpoint_path": tmp_path / "none"}, **RULES[rule])
    for parallel in ("layers", "features", "data"):
        two(run, parallel, options=report | {"checkpoint_path": tmp_path / parallel}, **RULES[rule])
        assert log(parallel) == pytest.approx(log("none"), rel=1e-9)
    if rule == "topk":
        assert log("none")["3/sparsity/dead_features"] > 0


@pytest.mark.slow
def test_layers_over_groups_that_share_features():
    four = Processes(4)
    try:
        every = four(run, [2, 2])
        assert all(distance(sets, run()) <= 1e-10 for sets in every)
    finally:
        four.close()
