"""Several configurations on the batches of one harvest."""

from __future__ import annotations

import json

import pytest
import torch

from pullback.training import TrainConfig, TrainingDiverged, train
from pullback.transcoders import load_transcoders

SMALL = {"d_sae": 48, "k": 8, "training_tokens": 1200, "train_batch_size_tokens": 100, "lr": 1e-2}


def equal(a, b):
    return a.layers == b.layers and all(
        torch.equal(v, w) for l in a for v, w in zip(a[l].parameters(), b[l].parameters(), strict=True)
    )


GRID = [
    TrainConfig(**SMALL),
    TrainConfig(**SMALL | {"k": 4, "d_sae": 32, "lr": 3e-3}),
    TrainConfig(**SMALL, architecture="jumprelu"),
    TrainConfig(**SMALL | {"hook_name": "hook_mlp_out"}),
]


def test_each_ends_as_it_would_alone_and_the_model_runs_once(lens, tokens, tmp_path):
    together = train(lens, tokens, configs=GRID, verbose=False, output_path=tmp_path / "out")
    passes, lens.forward_passes = lens.forward_passes, 0
    for one, config in zip(together, GRID, strict=True):
        assert equal(one, train(lens, tokens, config, verbose=False))
    assert lens.forward_passes == 4 * passes
    runs = json.loads((tmp_path / "out" / "runs.json").read_text())
    assert [run["differs"]["k"] for run in runs] == [8, 4, 8, 8]
    assert set(runs[0]["differs"]) == {"k", "d_sae", "lr", "architecture", "hook_name"}
    assert runs[2]["config"]["architecture"] == "jumprelu"
    for one, run in zip(together, runs, strict=True):
        assert equal(load_transcoders(tmp_path / "out" / run["run"]), one)


def test_another_seed_starts_elsewhere_on_the_same_batches(lens, tokens):
    first, second = train(lens, tokens, configs=[TrainConfig(**SMALL), TrainConfig(**SMALL, seed=7)], verbose=False)
    assert torch.equal(train(lens, tokens, TrainConfig(**SMALL), verbose=False)[0].W_enc, first[0].W_enc)
    assert not torch.equal(first[0].W_enc, second[0].W_enc)
    assert not torch.equal(train(lens, tokens, TrainConfig(**SMALL, seed=7), verbose=False)[0].W_enc, second[0].W_enc)


def test_they_resume_to_the_bit(lens, tokens, tmp_path):
    whole = train(lens, tokens, configs=GRID, verbose=False)
    options = {"configs": GRID, "checkpoint_path": tmp_path, "checkpoint_every_tokens": 300, "verbose": False}

    def interrupted():
        for _ in range(3):
            yield tokens
        raise KeyboardInterrupt

    def same():
        while True:
            yield tokens

    with pytest.raises(KeyboardInterrupt):
        train(lens, interrupted(), **options)
    again = train(lens, same(), resume=True, **options)
    stream = train(lens, same(), configs=GRID, verbose=False)
    assert all(map(equal, again, stream))
    assert not equal(whole[0], again[0])


def test_what_they_must_agree_on_is_named(lens, tokens):
    for name, value in (("context_size", 4), ("exclude_bos", False), ("training_tokens", 50), ("dtype", "float64")):
        with pytest.raises(ValueError, match=f"train: configs must agree on {name}"):
            train(lens, tokens, configs=[TrainConfig(**SMALL), TrainConfig(**SMALL | {name: value})])
    with pytest.raises(ValueError, match="agree on hook_name, got"):
        train(lens, tokens, configs=[*GRID, TrainConfig(**SMALL, hook_name="ln2.hook_out")])
    with pytest.raises(ValueError, match=r"give one config, or configs=\[\.\.\.\]"):
        train(lens, tokens, TrainConfig(), configs=GRID)


def test_a_run_that_diverges_is_named_and_none_is_lost(lens, tokens, tmp_path):
    configs = [TrainConfig(**SMALL), TrainConfig(**SMALL | {"lr": 1e30})]
    with pytest.raises(TrainingDiverged, match="run 1, layer 0"):
        train(lens, tokens, configs=configs, verbose=False, output_path=tmp_path)
    assert load_transcoders(tmp_path / "run_0.unfinished").layers == [0, 1]
