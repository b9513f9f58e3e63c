"""The shipped transcoders: they fit the shipped model, reconstruct it, and carry the state at the city."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from pullback.lens import as_lens
from pullback.zoo import make
from pullback.zoo.tinymix import DATA, files, load, load_lean, tasks, transcoders


@pytest.fixture(scope="module")
def model():
    return load()


@pytest.fixture(scope="module")
def sets():
    return transcoders.load_transcoders()


@pytest.fixture(scope="module")
def recorded() -> dict:
    return files.load_transcoder_figures()


def test_they_belong_to_the_shipped_model(model, sets, recorded):
    as_lens(model).check(sets)
    assert sets.layers == [0, 1, 2, 3]
    assert all((tc.d_sae, tc.activation.k, tc.dtype) == (1024, 16, torch.float32) for tc in sets.values())
    assert recorded["model_sha256"] == files.sha256(DATA / files.WEIGHTS)
    stored = {path.name: files.sha256(path) for path in (DATA / files.TRANSCODERS).glob("*.safetensors")}
    assert recorded["weights_sha256"] == stored
    shipped = sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file())
    assert shipped <= 8_000_000


def test_recorded_figures_are_good_enough(recorded):
    assert transcoders.shortfalls(recorded) == []


def test_the_model_answers_the_same_through_them(model, sets):
    measured = transcoders.agreement(model, sets, n=128, seed=21)
    for task, least in transcoders.LEAST_AGREEMENT.items():
        assert measured[task] >= least, task


def test_the_start_of_a_prompt_is_reconstructed(model, sets):
    start = torch.tensor([[tasks.BOS_ID]])
    for layer, (x, y) in as_lens(model).mlp_io(start).items():
        assert (sets[layer](x) - y).norm() <= 0.02 * y.norm()


def test_reconstruction_of_fresh_prompts(model, sets, recorded):
    lens, rows = as_lens(model), {layer: [] for layer in sets}
    for tokens, mask in tasks.training_batches(seed=1234, n_batches=4):
        for layer, (x, y) in lens.mlp_io(tokens).items():
            rows[layer].append((y[mask], sets[layer](x)[mask]))
    for layer, pairs in rows.items():
        y, reconstruction = (torch.cat(part) for part in zip(*pairs, strict=True))
        fvu = float((y - reconstruction).square().sum() / (y - y.mean(0)).square().sum())
        assert fvu <= transcoders.LARGEST_FVU
        assert fvu == pytest.approx(recorded["fvu"][str(layer)], rel=0.25)


def test_state_features_carry_the_state_and_the_others_do_not(model, sets):
    measured = transcoders.interchange(model, sets, load_lean(), n=200, seed=3)
    assert measured["state"] >= 0.95
    assert measured["complement"] <= 0.05
    assert measured["top16"] >= 0.95
    assert measured["same_state_kept"] >= 0.98
    state = transcoders.state_features(model, sets)
    assert state.tolist() == files.load_transcoder_figures()["state_features"]
    assert 20 <= len(state) <= 400


def test_eta_squared_of_known_features():
    state = torch.arange(12).repeat_interleave(4).float()
    within = torch.arange(4).repeat(12).float()
    features = torch.stack([state, within, torch.ones(48), state * 0 + (state == 3)], dim=1)
    torch.testing.assert_close(transcoders.eta_squared(features), torch.tensor([1.0, 0.0, 0.0, 1.0]))


def test_shortfalls_name_what_is_missing(recorded):
    bad = {**recorded, "fvu": {"0": 0.5}, "agreement": {**recorded["agreement"], "ioi": float("nan")}}
    assert transcoders.shortfalls(bad) == [
        "fvu of 0 is 0.5000, at most 0.15 is required",
        "agreement of ioi is nan, at least 0.95 is required",
    ]


def test_make_trains_transcoders_of_the_model_in_the_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(transcoders, "figures", partial(transcoders.figures, n_prompts=8, n_batches=1))
    threads = torch.get_num_threads()
    files.save(load_lean(), {}, {}, tmp_path)
    try:
        assert make.main(["tiny-mix", "--transcoders", "--out", str(tmp_path), "--steps", "2"]) == 1
    finally:
        torch.set_num_threads(threads)
    assert "not good enough to ship: fvu of 0" in capsys.readouterr().err
    made = transcoders.load_transcoders(tmp_path)
    as_lens(load(tmp_path)).check(made)
    assert made[0].W_enc.equal(made[0].W_enc.bfloat16().float()), "stored in 16 bits"
    assert files.load_transcoder_figures(tmp_path)["steps"] == 2
