"""SAELens: what it would write is read as it would run it, and what is written is read back the same."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from pullback.transcoders import BatchTopK, JumpReLU, ReLU, TopK, TranscoderSet, load_transcoders
from tests.transcoders.formats.conftest import D, F

D_OUT = 7
TRANSCODERS = {
    "transcoder": set(),
    "skip_transcoder": {"W_skip"},
    "jumprelu_transcoder": {"threshold"},
    "jumprelu_skip_transcoder": {"threshold", "W_skip"},
}


def config(architecture, **changes):
    metadata = {
        "sae_lens_version": "6.54.12",
        "sae_lens_training_version": None,
        "model_name": "toy",
        "hook_name": "blocks.3.ln2.hook_normalized",
        "hook_name_out": "blocks.3.hook_mlp_out",
        "hook_head_index": None,
        "prepend_bos": True,
        **changes.pop("metadata", {}),
    }
    return {
        "d_in": D,
        "d_sae": F,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": metadata,
        "architecture": architecture,
    } | changes


@pytest.fixture
def tensors(draw):
    def make(d_out, extra=frozenset()):
        every = {
            "W_enc": draw(D, F),
            "b_enc": draw(F),
            "W_dec": draw(F, d_out),
            "b_dec": draw(d_out),
            "W_skip": draw(d_out, D),
            "threshold": draw(F),
        }
        return {name: t for name, t in every.items() if name not in ("W_skip", "threshold") or name in extra}

    return make


@pytest.fixture
def save(tmp_path, write):
    return lambda weights, cfg, name="sae": write(tmp_path / name, "sae_weights.safetensors", weights, "cfg.json", cfg)


def theirs(t, x, cfg):
    """The forward pass of an SAELens dictionary, from the description of the layout."""
    centred = x - t["b_dec"] if cfg.get("apply_b_dec_to_input") else x
    h = centred @ t["W_enc"] + t["b_enc"]
    norms = t["W_dec"].norm(dim=-1) if cfg.get("rescale_acts_by_decoder_norm") else 1
    if "k" in cfg:
        values, ids = (h * norms).topk(cfg["k"])
        z = torch.zeros_like(h).scatter(1, ids, values.relu()) / norms
    else:
        z = h.relu() * (h > t["threshold"]) if "threshold" in t else h.relu()
    return z @ t["W_dec"] + t["b_dec"] + (x @ t["W_skip"].T if "W_skip" in t else 0)


@pytest.mark.parametrize("architecture", TRANSCODERS)
def test_a_transcoder_runs_as_there(save, tensors, square_x, architecture):
    weights, cfg = tensors(D_OUT, TRANSCODERS[architecture]), config(architecture, d_out=D_OUT)
    tc = load_transcoders(save(weights, cfg))[3]
    torch.testing.assert_close(tc(square_x), theirs(weights, square_x, cfg), rtol=1e-5, atol=1e-5)
    assert (tc.hook_in, tc.hook_out, tc.d_out) == ("ln2.hook_normalized", "hook_mlp_out", D_OUT)


@pytest.mark.parametrize("centred", [True, False], ids=["centred", "plain"])
@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("standard", {}),
        ("jumprelu", {}),
        ("topk", {"k": 5}),
        ("topk", {"k": 5, "rescale_acts_by_decoder_norm": True}),
    ],
    ids=["standard", "jumprelu", "topk", "topk rescaled"],
)
def test_an_autoencoder_runs_as_there(save, tensors, square_x, architecture, changes, centred):
    weights = tensors(D, {"threshold"} if architecture == "jumprelu" else frozenset())
    cfg = config(architecture, apply_b_dec_to_input=centred, **changes)
    cfg["metadata"] |= {"hook_name": "blocks.2.hook_resid_post", "hook_name_out": None}
    sets = load_transcoders(save(weights, cfg))
    torch.testing.assert_close(sets[2](square_x), theirs(weights, square_x, cfg), rtol=1e-4, atol=1e-4)
    assert (sets.hook_in(2), sets.hook_out(2)) == ("hook_resid_post", "hook_resid_post")


def test_norms_moved_to_the_encoder_are_not_rounded_to_the_16_bits_of_the_file(save, tensors, square_x):
    weights = {name: tensor.bfloat16() for name, tensor in tensors(D).items()}
    cfg = config("topk", k=5, rescale_acts_by_decoder_norm=True)
    cfg["metadata"] |= {"hook_name": "blocks.2.hook_resid_post", "hook_name_out": None}
    tc = load_transcoders(save(weights, cfg))[2]
    expected = theirs({name: tensor.float() for name, tensor in weights.items()}, square_x, cfg)
    torch.testing.assert_close(tc(square_x), expected, rtol=1e-5, atol=1e-5)


def test_a_configuration_from_before_version_6(save, tensors, square_x):
    cfg = {
        "d_in": D,
        "d_sae": F,
        "hook_point": "blocks.2.hook_resid_pre",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 5},
        "dtype": "float32",
    }
    weights = tensors(D)
    tc = load_transcoders(save(weights, cfg))[2]
    assert (tc.activation, tc.hook_in) == (TopK(5), "hook_resid_pre")
    expected = theirs(weights, square_x, {"k": 5, "apply_b_dec_to_input": True})  # what it meant without a word
    torch.testing.assert_close(tc(square_x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
@pytest.mark.parametrize("rule", [ReLU(), JumpReLU(0.4), JumpReLU(torch.linspace(0, 2, F))], ids=["relu", "one", "F"])
def test_forward_is_bitwise_equal_after_a_round_trip(make, x, round_trip, rule, skip, dtype, reading):
    sets = TranscoderSet({1: make(rule, skip=skip, dtype=dtype, reading=reading), 4: make(rule, seed=1, dtype=dtype)})
    # Layers may differ in architecture: one folder each.
    loaded = round_trip(sets, "saelens")
    assert all(torch.equal(loaded[layer](x), sets[layer](x)) for layer in (1, 4))
    assert (loaded.hook_in(1), loaded.hook_out(1)) == ("mlp.hook_in", "hook_mlp_out")
    assert (loaded[1].reading, loaded[4].reading) == (reading, None)


@pytest.mark.parametrize("rule", [TopK(5), ReLU(), JumpReLU(0.3)], ids=repr)
def test_an_autoencoder_is_written_as_one_without_calibration(make, square_x, round_trip, tmp_path, rule):
    tc = make(rule, d_in=D, hook_in="hook_resid_post", hook_out="hook_resid_post")
    loaded = round_trip(TranscoderSet({5: tc}), "saelens")[5]
    assert torch.equal(loaded(square_x), tc(square_x))
    cfg = json.loads((tmp_path / "out" / "blocks.5.hook_resid_post" / "cfg.json").read_text())
    assert cfg["architecture"] == {"topk": "topk", "relu": "standard", "jumprelu": "jumprelu"}[rule.name]


def test_what_is_written_is_what_the_layout_says(make, tmp_path, reading):
    sets = TranscoderSet({5: make(JumpReLU(0.4), skip=True, reading=reading)})
    sets.save(tmp_path, "saelens", metadata={"context_size": 64, "prepend_bos": True})
    folder = tmp_path / "blocks.5.mlp.hook_in"
    shapes = {name: list(t.shape) for name, t in load_file(folder / "sae_weights.safetensors").items()}
    assert shapes == {
        "W_enc": [13, 37],
        "b_enc": [37],
        "W_dec": [37, 11],
        "b_dec": [11],
        "W_skip": [11, 13],
        "threshold": [37],
    }
    cfg = json.loads((folder / "cfg.json").read_text())
    metadata = cfg.pop("metadata")
    assert cfg == {
        "d_in": 13,
        "d_sae": 37,
        "d_out": 11,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "architecture": "jumprelu_skip_transcoder",
    }
    assert metadata["sae_lens_version"] >= "6"
    assert metadata["model_name"] == "toy"
    assert metadata["hook_name"] == "blocks.5.mlp.hook_in"
    assert metadata["hook_name_out"] == "blocks.5.hook_mlp_out"
    assert (metadata["context_size"], metadata["prepend_bos"]) == (64, True)


@pytest.mark.parametrize("rule", [TopK(5), BatchTopK(5), TopK(5, relu=False)], ids=repr)
def test_a_topk_transcoder_needs_inputs(make, tmp_path, rule):
    with pytest.raises(ValueError, match=r"layer 0: SAELens has no transcoder with .* pass calibrate=\{layer: inputs"):
        TranscoderSet({0: make(rule)}).save(tmp_path / "out", "saelens")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"no inputs for layers \[0\]"):
        TranscoderSet({0: make(rule)}).save(tmp_path / "out", "saelens", calibrate={1: torch.zeros(1, 13)})


def test_calibration_writes_thresholds(make, round_trip):
    tc = make(TopK(5))
    inputs = torch.randn(400, 13, generator=torch.Generator().manual_seed(1))
    loaded = round_trip(TranscoderSet({0: tc}), "saelens", calibrate={0: inputs})[0]
    assert isinstance(loaded.activation, JumpReLU)
    counts = torch.bincount(tc.encode(inputs).indices.long(), minlength=37)
    assert torch.equal(torch.bincount(loaded.encode(inputs).indices.long(), minlength=37), counts)


def test_thresholds_below_zero_cannot_be_written(make, tmp_path):
    for rule in (JumpReLU(-0.1), JumpReLU(torch.linspace(-1, 1, 37))):
        with pytest.raises(ValueError, match="layer 0: a threshold below 0 keeps negative features"):
            TranscoderSet({0: make(rule)}).save(tmp_path / "out", "saelens")


def test_thresholds_below_zero_are_read_as_they_act(save, tensors):
    weights = tensors(D_OUT, {"threshold"})
    weights["threshold"] = torch.full((F,), -5.0)
    tc = load_transcoders(save(weights, config("jumprelu_transcoder", d_out=D_OUT)))[3]
    assert tc.encode(torch.randn(9, D)).values.min() > 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architecture": "gated"}, "architecture 'gated' is not a transcoder of ours"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm'"),
        ({"reshape_activations": "hook_z"}, "reshape_activations is 'hook_z'"),
        ({"apply_b_dec_to_input": True}, "SAELens refuses for transcoders"),
        ({"activation_fn": "tanh-relu"}, "activation function 'tanh-relu' is not supported"),
        ({"d_sae": F + 1}, "the configuration says F=38, the tensors have 37"),
        ({"d_in": F, "d_sae": D}, "the configuration says F=11, the tensors have 37"),
        ({"architecture": "jumprelu_transcoder"}, "lacks threshold"),
        ({"metadata": {"hook_name_out": None}}, "names no output hook"),
        ({"metadata": {"hook_name": None}}, "names no hook"),
        ({"metadata": {"hook_name_out": "blocks.4.hook_mlp_out"}}, "reads layer 3 and writes layer 4"),
        ({"metadata": {"hook_name": "unembed.hook_in"}}, "not inside a block"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_refused(save, tensors, changes, sentence):
    changes = {"architecture": "transcoder", "d_out": D_OUT} | changes
    with pytest.raises(ValueError, match=sentence):
        load_transcoders(save(tensors(D_OUT), config(**changes)))


@pytest.mark.parametrize("name", ["W_enc", "W_dec"])
def test_a_matrix_the_other_way_round_is_refused(save, tensors, name):
    weights = tensors(D_OUT)
    weights[name] = weights[name].T
    with pytest.raises(ValueError, match=rf"not the layout of SAELens: {name} must be .* \(transposed\?\)"):
        load_transcoders(save(weights, config("transcoder", d_out=D_OUT)))


def test_a_square_matrix_is_read_by_the_table(save, square_x, draw):
    weights = {"W_enc": draw(D, D), "b_enc": draw(D), "W_dec": draw(D, D), "b_dec": draw(D)}
    cfg = config("transcoder", d_out=D, d_sae=D)
    tc = load_transcoders(save(weights, cfg))[3]
    assert torch.equal(tc.W_enc, weights["W_enc"].T)
    torch.testing.assert_close(tc(square_x), theirs(weights, square_x, cfg), rtol=1e-5, atol=1e-5)


def test_a_folder_of_dictionaries_is_a_set(save, tensors):
    for layer in (0, 3):
        cfg = config("transcoder", d_out=D_OUT, metadata={"hook_name": f"blocks.{layer}.mlp.hook_in"})
        cfg["metadata"]["hook_name_out"] = f"blocks.{layer}.hook_mlp_out"
        root = save(tensors(D_OUT), cfg, f"release/width_1k/layer_{layer}").parent.parent
    assert load_transcoders(root).layers == [0, 3]
    assert load_transcoders(root, layer=3).layers == [3]
    assert load_transcoders(root / "width_1k" / "layer_3" / "sae_weights.safetensors").layers == [3]
    save(tensors(D_OUT), cfg, "release/width_2k/layer_3")
    with pytest.raises(ValueError, match="layer 3 has two dictionaries.*width_1k.*width_2k"):
        load_transcoders(root)


def test_saving_leaves_dictionaries_of_other_places(make, tmp_path):
    other = tmp_path / "blocks.1.hook_resid_post"
    other.mkdir()
    save_file({"x": torch.zeros(1)}, other / "sae_weights.safetensors")
    TranscoderSet({0: make(ReLU()), 1: make(ReLU())}).save(tmp_path, "saelens")
    TranscoderSet({1: make(ReLU())}).save(tmp_path, "saelens")
    assert sorted(os.listdir(tmp_path)) == ["blocks.1.hook_resid_post", "blocks.1.mlp.hook_in"]


def test_a_full_disk_leaves_the_old_files(make, x, tmp_path, monkeypatch):
    from pullback.transcoders.formats import files as shared

    sets = TranscoderSet({0: make(ReLU()), 1: make(ReLU(), seed=1)})
    sets.save(tmp_path / "out", "saelens")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        TranscoderSet({0: make(ReLU(), seed=5)}).save(tmp_path / "out", "saelens")
    loaded = load_transcoders(tmp_path / "out")
    assert all(torch.equal(loaded[l](x), sets[l](x)) for l in (0, 1))
    assert os.listdir(tmp_path) == ["out"]
