"""circuit-tracer's per-layer sets: configurations that list their files, and what its own loader understands."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from pullback.transcoders import BatchTopK, JumpReLU, ReLU, TopK, TranscoderSet, load_transcoders
from tests.transcoders.formats.conftest import D, F


@pytest.fixture
def stored(draw):
    """Tensors of a layer file, (F, d) both."""
    return lambda: {"W_enc": draw(F, D), "b_enc": draw(F), "W_dec": draw(F, D), "b_dec": draw(D)}


CONFIG = {
    "model_name": "toy",
    "model_kind": "transcoder_set",
    "feature_input_hook": "hook_resid_mid",
    "feature_output_hook": "hook_mlp_out",
    "scan": "owner/repo",
}


def test_a_list_of_files_is_a_set_in_its_order(stored, tmp_path, square_x):
    layers = [stored(), stored() | {"activation_function.threshold": torch.full((F,), 0.5)}]
    for name, tensors in zip(("b", "a"), layers, strict=True):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    config = CONFIG | {"transcoders": ["b.safetensors", "a.safetensors"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "wandb-config.yaml").write_text("d_model: {value: 11}\n")
    sets = load_transcoders(tmp_path)
    assert [tc.activation.name for tc in sets.values()] == ["relu", "jumprelu"]
    assert sets.hook_in(1) == "hook_resid_mid"
    for tc, t, theta in zip(sets.values(), layers, (0, 0.5), strict=True):
        h = square_x @ t["W_enc"].T + t["b_enc"]
        torch.testing.assert_close(tc(square_x), h * (h > theta) @ t["W_dec"] + t["b_dec"], rtol=1e-5, atol=1e-5)
    assert load_transcoders(tmp_path, layer=1).layers == [1]
    with pytest.raises(ValueError, match="has no layer 2; its configuration lists 2"):
        load_transcoders(tmp_path, layer=2)


def test_a_list_of_gemmascope_files_takes_the_configured_hooks(tmp_path, draw):
    W = {"W_enc": draw(D, F), "b_enc": draw(F), "W_dec": draw(F, D), "b_dec": draw(D), "threshold": draw(F)}
    np.savez(tmp_path / "params.npz", **{name: t.numpy() for name, t in W.items()})
    lower = {"w_enc": W["W_enc"], "w_dec": W["W_dec"]} | {name: W[name] for name in ("b_enc", "b_dec", "threshold")}
    save_file(lower, tmp_path / "two.safetensors")
    config = CONFIG | {"transcoders": ["params.npz", "two.safetensors"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "params.npz").rename(tmp_path / "x.npz")
    config["transcoders"][0] = "x.npz"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    sets = load_transcoders(tmp_path)
    assert sets.hook_in(0) == sets.hook_in(1) == "hook_resid_mid"
    assert torch.equal(sets[0].W_enc, sets[1].W_enc)


def test_files_on_the_hub_are_fetched_one_by_one(stored, tmp_path, monkeypatch):
    from pullback.transcoders import hub

    save_file(stored(), tmp_path / "far.safetensors")
    asked = []
    monkeypatch.setattr(hub, "fetch", lambda reference: asked.append(str(reference)) or tmp_path / "far.safetensors")
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump(CONFIG | {"transcoders": ["hf://owner/repo/layer_0.safetensors?revision=abc"]})
    )
    assert load_transcoders(tmp_path).layers == [0]
    assert asked == ["hf://owner/repo/layer_0.safetensors@abc"]


@pytest.mark.parametrize("files", [[], "all", [3]], ids=str)
def test_a_list_that_is_none_is_refused(tmp_path, files):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"transcoders": files}))
    with pytest.raises(ValueError, match="transcoders must list one file a layer"):
        load_transcoders(tmp_path)


@pytest.mark.parametrize("rule", [ReLU(), JumpReLU(0.4), JumpReLU(torch.linspace(-1, 2, F))], ids=["relu", "one", "F"])
@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
def test_forward_is_bitwise_equal_after_a_round_trip(make, square_x, round_trip, tmp_path, rule, skip):
    sets = TranscoderSet({l: make(rule, d_in=D, skip=skip, seed=l, hook_in="ln2.hook_out") for l in (0, 1)})
    loaded = round_trip(sets, "circuit-tracer", scan="owner/repo")
    assert all(torch.equal(loaded[l](square_x), sets[l](square_x)) for l in sets)
    config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert config == {
        "model_name": "unknown",
        "model_kind": "transcoder_set",
        "feature_input_hook": "ln2.hook_out",
        "feature_output_hook": "hook_mlp_out",
        "scan": "owner/repo",
    }
    assert list(load_file(tmp_path / "out" / "layer_0.safetensors")["W_enc"].shape) == [F, D]


def test_topk_is_written_with_thresholds_on_request(make, round_trip, square_x):
    sets = TranscoderSet({0: make(TopK(5), d_in=D)})
    loaded = round_trip(sets, "circuit-tracer", calibrate={0: square_x})[0]
    assert isinstance(loaded.activation, JumpReLU)
    assert loaded.encode(square_x).values.numel() == sets[0].encode(square_x).values.numel()


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        ({1: {}}, r"needs every layer from 0 on, this set has \[1\]"),
        ({0: {}, 1: {"hook_in": "ln2.hook_out"}}, "one pair of hooks for all layers"),
        ({0: {"d_in": 13}}, "one width"),
        ({0: {"activation": TopK(5)}}, r"runs a local set with TopK\(.*\) as ReLU; pass calibrate="),
        ({0: {"activation": BatchTopK(5)}}, "pass calibrate="),
    ],
    ids=["layers", "hooks", "widths", "topk", "batch topk"],
)
def test_what_its_loader_would_not_understand_is_not_written(make, tmp_path, layers, sentence):
    sets = TranscoderSet(
        {
            layer: make(**({"activation": options.pop("rule", ReLU()), "d_in": D} | options))
            for layer, options in layers.items()
        }
    )
    with pytest.raises(ValueError, match=sentence):
        sets.save(tmp_path / "out", "circuit-tracer")
    assert not (tmp_path / "out").exists()


def test_unknown_formats_and_options_are_refused(make, tmp_path):
    sets = TranscoderSet({0: make(ReLU(), d_in=D)})
    with pytest.raises(ValueError, match="must be one of pullback, saelens, sparsify, circuit-tracer, got 'npz'"):
        sets.save(tmp_path / "out", "npz")
    with pytest.raises(ValueError, match="saelens has no option hookpoint; it has metadata"):
        sets.save(tmp_path / "out", "saelens", hookpoint="h.{layer}.mlp")
