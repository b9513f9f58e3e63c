"""Sets whose weights stay in their files compute what the same sets in memory do, in every layout that allows it."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pullback.transcoders import (
    BatchTopK,
    CrossLayerTranscoder,
    JumpReLU,
    MappedRows,
    ReLU,
    SourceLayer,
    TopK,
    Transcoder,
    TranscoderSet,
    load_transcoders,
)
from tests.transcoders.lazy.conftest import assert_same

D, F = 6, 40
pytestmark = pytest.mark.usefixtures("small_blocks")
SAELENS = {
    "d_in": D,
    "d_sae": F,
    "k": 5,
    "metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.1.hook_mlp_out"},
}
SPARSIFY = {"activation": "topk", "k": 5, "num_latents": F, "d_in": D}
GEMMA = {
    "architecture": "jump_relu",
    "hf_hook_point_in": "model.layers.0.pre_feedforward_layernorm.output",
    "hf_hook_point_out": "model.layers.0.post_feedforward_layernorm.output",
}


@pytest.fixture
def draw():
    g = torch.Generator().manual_seed(3)
    return lambda *shape: torch.randn(*shape, generator=g)


@pytest.fixture
def x():
    """{layer: Float[Tensor, '2 5 6']}"""
    return {layer: torch.randn(2, 5, D, generator=torch.Generator().manual_seed(layer)) for layer in range(3)}


def _set(draw, activation, skip=False):
    return TranscoderSet(
        {
            layer: Transcoder(
                draw(F, D), draw(F), draw(F, D), draw(D), draw(D, D) if skip else None, activation=activation
            )
            for layer in (0, 2)
        }
    )


def _clt(draw, tying, activation):
    def source(layer):
        targets = 3 - layer if tying == "none" else 1
        return SourceLayer(draw(F, D), draw(F), draw(F, targets, D), draw(D), draw(D, D), activation=activation)

    return CrossLayerTranscoder({layer: source(layer) for layer in range(3)}, tying)


def _written(folder, name, tensors, config_name, config):
    folder.mkdir(parents=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name)
    (folder / config_name).write_text(json.dumps(config))
    return folder


def _saelens(folder, draw, **config):
    tensors = {"W_enc": draw(D, F), "b_enc": draw(F), "W_dec": draw(F, D), "b_dec": draw(D)}
    return _written(folder, "sae_weights.safetensors", tensors, "cfg.json", SAELENS | config)


def _gemma_clt(folder, draw):
    folder.mkdir()
    for layer in range(3):
        tensors = {"w_enc": draw(D, F), "b_enc": draw(F), "w_dec": draw(F, 3, D), "b_dec": draw(D)}
        save_file(tensors | {"threshold": draw(F)}, folder / f"params_layer_{layer}.safetensors")
    (folder / "config.json").write_text(json.dumps(GEMMA))
    return folder


def _saved(sets, folder, format):
    sets.save(folder, format)
    return folder


LAYOUTS = {
    **{
        f"pullback-{rule!r}": lambda f, draw, rule=rule: _saved(_set(draw, rule, skip=True), f, "pullback")
        for rule in (TopK(5), TopK(5, relu=False), BatchTopK(3), BatchTopK(3, 0.5), ReLU(), JumpReLU(0.3))
    },
    **{
        f"clt-{tying}": lambda f, draw, tying=tying: _saved(_clt(draw, tying, TopK(4)), f, "pullback")
        for tying in ("none", "per_source", "per_target")
    },
    "circuit-tracer-clt": lambda f, draw: _saved(_clt(draw, "none", ReLU()), f, "circuit-tracer"),
    "saelens": lambda f, draw: _saved(_set(draw, JumpReLU(0.5), skip=True), f, "saelens"),
    "saelens-autoencoder": lambda f, draw: _saelens(f, draw, architecture="topk", apply_b_dec_to_input=True),
    "sparsify": lambda f, draw: _saved(_set(draw, TopK(4)), f, "sparsify"),
    "sparsify-autoencoder": lambda f, draw: _written(
        f / "layers.2.mlp",
        "sae.safetensors",
        {"encoder.weight": draw(F, D), "encoder.bias": draw(F), "W_dec": draw(F, D), "b_dec": draw(D)},
        "cfg.json",
        SPARSIFY,
    ),
    "gemmascope2": lambda f, draw: _written(
        f / "layer_0",
        "params.safetensors",
        {"w_enc": draw(D, F), "b_enc": draw(F), "w_dec": draw(F, D), "b_dec": draw(D), "threshold": draw(F)},
        "config.json",
        GEMMA,
    ),
    "gemmascope2-clt": _gemma_clt,
}


def _same(ours, theirs, x):
    assert ours.layers == theirs.layers
    inputs = {layer: x[layer] for layer in theirs}
    for layer in theirs:
        assert_same(ours.encode(layer, x[layer]), theirs.encode(layer, x[layer]))
        assert torch.equal(ours.encoder_rows(layer, [3, 1]), theirs.encoder_rows(layer, [3, 1]))
        for dst in theirs.targets(layer):
            assert torch.equal(ours.decoder_rows(layer, [7, 7, 0], dst), theirs.decoder_rows(layer, [7, 7, 0], dst))
        at = [0, 4], [9, 2]
        assert torch.equal(ours[layer].preactivations(x[layer], *at), theirs[layer].preactivations(x[layer], *at))
    for layer, y in theirs(inputs).items():
        assert torch.equal(ours(inputs)[layer], y)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lazy", [True, "encoder", "decoder"])
def test_the_same_numbers_as_in_memory(layout, lazy, tmp_path, draw, x):
    folder = LAYOUTS[layout](tmp_path / "set", draw)
    eager, ours = load_transcoders(folder), load_transcoders(folder, lazy=lazy)
    for features in ours.values():
        found = [name for name in ("W_enc", "W_dec") if isinstance(getattr(features, name), MappedRows)]
        assert found == {True: ["W_enc", "W_dec"], "encoder": ["W_enc"], "decoder": ["W_dec"]}[lazy]
    _same(ours, eager, x)
    _same(pickle.loads(pickle.dumps(ours)), eager, x)
    acts = {layer: eager.encode(layer, x[layer]) for layer in eager}
    held = ours.holding(acts)
    for layer in eager:
        assert torch.equal(held.decode(acts, layer), eager.decode(acts, layer))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, None])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_dtypes_are_those_of_a_set_in_memory(dtype, stored, tmp_path, draw, x):
    _set(draw, TopK(5)).to(dtype=stored).save(tmp_path / "set")
    eager = load_transcoders(tmp_path / "set", dtype=dtype)
    ours = load_transcoders(tmp_path / "set", dtype=dtype, lazy=True)
    assert ours[0].dtype == ours[0].W_enc.dtype == eager[0].dtype
    if dtype != torch.float64:
        _same(ours, eager, x)
    moved = ours.to(dtype=torch.float32)
    assert moved[0].W_dec.dtype == torch.float32
    assert ours[0].dtype == eager[0].dtype
    if dtype == torch.bfloat16 != stored:  # a matrix in memory has lost what a file still has
        assert torch.equal(moved[0].W_enc[:], load_transcoders(tmp_path / "set")[0].W_enc)
    else:
        _same(moved, eager.to(dtype=torch.float32), x)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_kernel_does_not_read_ahead_in_decoders(tmp_path, draw):
    _clt(draw, "none", ReLU()).save(tmp_path / "set")
    clt = load_transcoders(tmp_path / "set", lazy=True)
    maps = Path("/proc/self/smaps").read_text().split("\nVmFlags:")
    advised = [m.split("\n")[0].split() for m in maps[1:]]
    told = {name: flags for flags, m in zip(advised, maps, strict=False) for name in [m.split("Size:")[0].split()[-1]]}
    assert "rr" in told[str(tmp_path / "set" / "W_dec_0.safetensors")]
    assert "rr" not in told[str(tmp_path / "set" / "W_enc_0.safetensors")]
    assert clt.layers == [0, 1, 2]


def test_parameters_are_what_is_in_memory(tmp_path, draw):
    _set(draw, TopK(5)).save(tmp_path / "set")
    assert set(load_transcoders(tmp_path / "set", lazy=True)[0].state_dict()) == {"b_enc", "b_dec"}
    assert set(load_transcoders(tmp_path / "set", lazy="decoder")[0].state_dict()) == {"W_enc", "b_enc", "b_dec"}


@pytest.mark.parametrize("format", ["pullback", "saelens", "circuit-tracer"])
def test_saved_from_its_files(format, tmp_path, draw, x):
    _saved(TranscoderSet(dict(enumerate(_set(draw, TopK(4)).values()))), tmp_path / "set", "pullback")
    calibrate = None if format == "pullback" else x
    load_transcoders(tmp_path / "set", lazy=True).save(tmp_path / "out", format, calibrate=calibrate)
    load_transcoders(tmp_path / "set").save(tmp_path / "in", format, calibrate=calibrate)
    ours, theirs = load_transcoders(tmp_path / "out"), load_transcoders(tmp_path / "in")
    _same(ours, theirs, x)


def test_what_no_file_holds_as_it_is_used_is_refused(tmp_path, draw):
    folder = _saelens(tmp_path / "a", draw, architecture="topk", rescale_acts_by_decoder_norm=True)
    load_transcoders(folder)
    with pytest.raises(ValueError, match="W_(enc|dec) is not read as it lies in the file.*convert it once"):
        load_transcoders(folder, lazy=True)


def test_other_formats_say_that_they_cannot(tmp_path, draw):
    place = tmp_path / "transcoders" / "layer_0"
    place.mkdir(parents=True)
    arrays = {"W_enc": draw(D, F), "b_enc": draw(F), "W_dec": draw(F, D), "b_dec": draw(D), "threshold": draw(F)}
    np.savez(place / "params.npz", **{name: t.numpy() for name, t in arrays.items()})
    with pytest.raises(ValueError, match="gemmascope cannot be read lazily; load it without lazy="):
        load_transcoders(place, lazy=True)
    with pytest.raises(ValueError, match="lazy must be True, False, 'encoder' or 'decoder'"):
        load_transcoders(place, lazy="both")
