"""Several processes train one cross-layer transcoder: that of one process, whatever is divided."""

from __future__ import annotations

import json

import pytest

from pullback.training import LoggingConfig, TrainConfig, train
from pullback.transcoders import BatchTopK, CrossLayerTranscoder, JumpReLU, ReLU, TopK, load_transcoders
from tests.training.conftest import ToyLens
from tests.training.distributed.test_equality import SETTINGS, distance, prompts, run, weights

RULES = {
    "topk": {"max_grad_norm": 0.05},
    "topk-negative": {"activation": TopK(8, relu=False), "skip_connection": True, "decoder_tying": "per_source"},
    "norm": {"k": 30, "decoder_norm": True, "decoder_tying": "per_target"},  # k is more than a process holds
    "batch-topk": {"activation": BatchTopK(8), "k_start": 20, "k_anneal_steps": 10},
    "relu": {"activation": ReLU(), "weight_by_decoder_norm": True, "decoder_tying": "per_target"},
    "jumprelu": {"activation": JumpReLU(2.0), "pre_act_loss_coefficient": 1e-3, "auxk_alpha": 0.1},  # some die
    "tanh": {
        "activation": JumpReLU(0.1), "jumprelu_sparsity_loss_mode": "tanh", "weight_by_decoder_norm": True,
        "decoder_tying": "per_source", "max_grad_norm": 0.05,
    },
    "lazy": {"k": 40, "optimizer": "lazy_adam", "train_batch_size_tokens": 5, "training_tokens": 150},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setattr("pullback.lens.as_lens", lambda model: model)


@pytest.mark.parametrize("rule", RULES)
def test_one_process_or_two(two, rule):
    settings = {"cross_layer": True} | RULES[rule]
    alone = run(**settings)
    for parallel in ("data", "features"):
        first, second = two(run, parallel, **settings)
        assert distance(first, second) == 0, "both have the same one"
        assert distance(first, alone) <= 1e-10, parallel


def test_float32(two):
    """What is written to a layer is a sum over processes, rounded; tokens may be encoded anywhere."""
    alone = run(cross_layer=True, dtype="float32")
    for parallel, tolerance in (("data", 0), ([1, 2], 1e-5)):
        first, second = two(run, parallel, cross_layer=True, dtype="float32")
        assert distance(first, second) == 0
        assert distance(first, alone) <= tolerance, parallel


def published(path, parallel):
    """A run by default, with its figures; what every process is given at the end."""
    settings = SETTINGS | RULES["jumprelu"] | {"cross_layer": True, "decoder_tying": "per_source"}
    config = TrainConfig(**settings, parallel=parallel)
    where = {"output_path": path / "clt", "checkpoint_path": path / "run"}
    clt = train(ToyLens(), prompts(), config, verbose=False, logger=LoggingConfig(log_every_n_steps=10), **where)
    return type(clt).__name__, clt.decoder_tying, clt[1].reading, weights(clt)


def test_the_set_at_the_end_and_the_figures_are_those_of_one_process(two, tmp_path):
    """By default features are divided, of which every process has some in each layer."""
    alone = published(tmp_path / "one", "none")
    assert alone[:2] == ("CrossLayerTranscoder", "per_source")
    for found in two(published, tmp_path / "two", None):
        assert found[:3] == alone[:3]
        assert distance(found[3], alone[3]) <= 1e-10
    saved = load_transcoders(tmp_path / "two" / "clt")
    assert isinstance(saved, CrossLayerTranscoder)
    assert distance(weights(saved), alone[3]) <= 1e-10

    def log(name):
        lines = [json.loads(line) for line in (tmp_path / name / "run" / "log.jsonl").read_text().splitlines()]
        return {f"{i}/{key}": value for i, line in enumerate(lines) for key, value in line.items()}

    assert log("two") == pytest.approx(log("one"), rel=1e-9)
    assert log("one")["3/losses/auxiliary_reconstruction_loss"] > 0


def side_by_side(parallel):
    """Per-layer transcoders and a cross-layer one, on the same batches."""
    configs = [TrainConfig(**SETTINGS, parallel=parallel, cross_layer=which) for which in (False, True)]
    return [weights(sets) for sets in train(ToyLens(), prompts(), configs=configs, verbose=False)]


def test_per_layer_transcoders_beside_it_are_divided_alike(two):
    alone = side_by_side("none")
    for found in two(side_by_side, None):
        assert max(map(distance, found, alone)) <= 1e-10
