"""Checkpoints: whatever ends a run, the resumed one ends with the bits of one that was never stopped."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pullback.training import TrainConfig, TrainingDiverged, TrainStep, checkpoint, train
from pullback.transcoders import BatchTopK, JumpReLU, ReLU, load_transcoders
from tests.training.conftest import D_VOCAB, ToyLens

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "d_sae": 48,
    "k": 8,
    "training_tokens": 4000,
    "train_batch_size_tokens": 100,
    "lr": 1e-2,
    "lr_warm_up_steps": 5,
    "n_batches_in_buffer": 4,
    "store_batch_size_prompts": 7,
    "dead_feature_window": 150,
}
EVERY = 500


def prompts():
    return torch.randint(1, D_VOCAB, (24, 10), generator=torch.Generator().manual_seed(3))


def run(path=None, tokens=None, resume=True, settings=SETTINGS, **more):
    where = {} if path is None else {"checkpoint_path": path, "checkpoint_every_tokens": EVERY, "resume": resume}
    return train(
        ToyLens(), prompts() if tokens is None else tokens, TrainConfig(**settings), verbose=False, **where, **more
    )


def same_bits(a, b):
    def everything(sets):
        for layer in sets:
            yield from sets[layer].parameters()
            yield torch.as_tensor(getattr(sets[layer].activation, "theta", 0.0))
            yield torch.as_tensor(getattr(sets[layer].activation, "threshold", 0.0))

    return a.layers == b.layers and all(torch.equal(v, w) for v, w in zip(everything(a), everything(b), strict=True))


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setattr("pullback.lens.as_lens", lambda model: model)


def interrupted(n):
    """Batches of prompts that end with Ctrl-C after n of them; the same ones at every call."""

    def batches():
        for i, ids in enumerate(prompts().repeat(100, 1).split(5)):
            if i == n:
                raise KeyboardInterrupt
            yield ids

    return batches()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"decoder_norm": True, "skip_connection": True},
        {"optimizer": "lazy_adam", "dtype": "float64", "prefetch": 2},
        {"auxk_alpha": 0.0, "layers": [1]},
        {"activation": BatchTopK(8), "k_start": 20, "k_anneal_steps": 30},
        {"activation": JumpReLU(0.1), "l0_warm_up_steps": 30, "pre_act_loss_coefficient": 1e-3},
        {"activation": ReLU(), "l1_warm_up_steps": 30},
        {"matryoshka_widths": [12, 24]},
        {"cross_layer": True, "skip_connection": True, "activation": BatchTopK(8)},
        {"cross_layer": True, "decoder_tying": "per_source", "dtype": "float64"},
        {"cross_layer": True, "decoder_tying": "per_target", "activation": JumpReLU(0.1)},
    ],
    ids=[
        "plain",
        "norm-skip",
        "lazy-float64-thread",
        "one-layer",
        "batch-topk",
        "jumprelu",
        "relu",
        "matryoshka",
        "cross-layer",
        "per-source",
        "per-target",
    ],
)
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, settings):
    settings = SETTINGS | settings
    whole = run(tokens=interrupted(None), settings=settings)
    for n in (17, 44):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, interrupted(n), settings=settings)
    assert (tmp_path / "latest").read_text() > "tokens_000000000000"
    assert same_bits(whole, run(tmp_path, interrupted(None), settings=settings))


CHILD = """
import os, signal, sys
import torch
torch.set_num_threads(1)
import pullback.lens
pullback.lens.as_lens = lambda model: model
from pullback.training import TrainStep
from tests.training import test_checkpoint
path, where, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
calls = 0
owner, name = {"step": (TrainStep, "__call__"), "fsync": (os, "fsync"), "rename": (os, "rename")}[where]
original = getattr(owner, name)
def counted(*args, **kwargs):
    global calls
    calls += 1
    if calls == n:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)
setattr(owner, name, counted)
test_checkpoint.run(path)
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
@pytest.mark.parametrize("where", ["step", "fsync", "rename"])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, where):
    """Killed between steps, and while a checkpoint is written or swapped in; again and again, at random."""
    random.seed(where)
    latest = []
    for most in {"step": (30, 30, 14), "fsync": (40, 60), "rename": (4, 7)}[where]:
        arguments = [sys.executable, "-c", CHILD, str(tmp_path), where, str(random.randint(1, most))]
        ended = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        pointer = tmp_path / "latest"
        latest.append(pointer.read_text() if pointer.exists() else "")
        if latest[-1]:
            load_transcoders(tmp_path / latest[-1] / "transcoders")
    assert latest == sorted(latest)
    assert same_bits(run(), run(tmp_path))
    assert not [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")], "leftovers"


def test_the_newest_are_kept_and_can_be_read_as_sets(tmp_path):
    trained = run(tmp_path, keep_checkpoints=3)
    names = sorted(entry.name for entry in tmp_path.iterdir() if entry.is_dir())
    assert names == [f"tokens_{n:012d}" for n in (3000, 3500, 4000)]
    assert (tmp_path / "latest").read_text() == names[-1]
    assert same_bits(load_transcoders(tmp_path / names[-1] / "transcoders"), trained)
    assert same_bits(run(tmp_path), trained), "a finished run is not trained further"


def test_a_lost_pointer_or_a_half_checkpoint_is_no_harm(tmp_path):
    trained = run(tmp_path)
    (tmp_path / "latest").unlink()
    (tmp_path / "tokens_000000009999").mkdir()
    assert same_bits(run(tmp_path), trained)


def test_divergence_keeps_the_last_good_checkpoint(tmp_path):
    lens = ToyLens()
    W_in, b_in, W_out, b_out = lens.mlps[1]

    def poisoned():
        for i in range(1000):
            if i == 60:
                lens.mlps[1] = (W_in, b_in, W_out * torch.nan, b_out)
            yield prompts()[:5]

    with pytest.raises(TrainingDiverged, match="layer 1"):
        train(
            lens,
            poisoned(),
            TrainConfig(**SETTINGS),
            verbose=False,
            checkpoint_path=tmp_path,
            checkpoint_every_tokens=EVERY,
        )
    last = load_transcoders(tmp_path / (tmp_path / "latest").read_text() / "transcoders")
    assert all(bool(weight.isfinite().all()) for layer in last for weight in last[layer].parameters())


def test_a_full_disk_leaves_the_checkpoints_before(tmp_path, monkeypatch):
    original, calls = checkpoint.save_file, []

    def full(tensors, file):
        calls.append(file)
        if len(calls) > 7:
            raise OSError(28, "No space left on device")
        original(tensors, file)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(OSError, match="No space left"):
            run(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "latest",
        "log.jsonl",
        "tokens_000000000500",
        "tokens_000000001000",
    ]
    assert same_bits(run(), run(tmp_path))


def test_the_log_has_every_report_once(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, interrupted(17))
    with open(tmp_path / "log.jsonl", "a") as log:
        log.write('{"details/n_training_sam')
    run(tmp_path, interrupted(None))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["details/n_training_samples"] for line in lines] == [100, 2100, 4000]
    assert {"losses/overall_loss", "metrics/l0", "layer_1/metrics/explained_variance"} <= set(lines[0])


def test_runs_that_do_not_fit_are_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(ValueError, match="holds checkpoints of another run; give resume=True"):
        run(tmp_path, resume=False)
    with pytest.raises(ValueError, match=r"other settings \(lr was 0.01, is 0.5\)"):
        run(tmp_path, settings=SETTINGS | {"lr": 0.5})
    with pytest.raises(ValueError, match="needs a checkpoint_path"):
        train(ToyLens(), prompts(), TrainConfig(**SETTINGS), verbose=False, resume=True)
    with pytest.raises(ValueError, match="keep_checkpoints must be at least 1"):
        run(tmp_path, keep_checkpoints=0)
    state = tmp_path / (tmp_path / "latest").read_text() / "state.json"
    state.write_text(state.read_text()[:40])
    with pytest.raises(ValueError, match=r"state\.json cannot be read"):
        run(tmp_path)


def test_a_step_refuses_the_state_of_another():
    state = TrainStep(4, 4, 8, 2).state_dict()
    with pytest.raises(ValueError, match="the weights must have the shapes"):
        TrainStep(4, 4, 9, 2).load_state_dict(state)
