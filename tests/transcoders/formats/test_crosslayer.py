"""Cross-layer transcoders of other tools: read as their forward passes are described."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from pullback.transcoders import CrossLayerTranscoder, load_transcoders
from tests.transcoders.formats.conftest import D, F

L = 3
HOOKS = {"hook_in": "ln2.hook_normalized", "hook_out": "hook_mlp_out"}
PAIRS = [(l, m) for l in range(L) for m in range(l, L)]


@pytest.fixture
def x():
    """{layer: Float[Tensor, '50 11']}"""
    g = torch.Generator().manual_seed(7)
    return {layer: torch.randn(50, D, generator=g) for layer in range(L)}


def jumped(x, W_enc, b_enc, theta):
    """relu(h) (h > theta) for W_enc (d, F)"""
    h = x @ W_enc + b_enc
    return h.relu() * (h > theta)


def agrees(loaded, expected, x):
    assert isinstance(loaded, CrossLayerTranscoder)
    assert loaded.layers == list(range(L))
    for layer, y in loaded(x).items():
        torch.testing.assert_close(y, expected[layer], rtol=1e-5, atol=1e-5)


# GemmaScope 2 ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def gemma(tmp_path, draw):
    """gemma(skip) -> a folder, and the tensors of every layer"""

    def make(skip=False, config=None):
        layers = []
        for layer in range(L):
            own = {
                "w_enc": draw(D, F),
                "b_enc": draw(F),
                "w_dec": draw(F, L, D),  # what lies below its own layer is not used
                "b_dec": draw(D),
                "threshold": draw(F),
            } | ({"affine_skip_connection": draw(D, D)} if skip else {})
            layers.append(own)
            save_file(own, tmp_path / f"params_layer_{layer}.safetensors")
        if config is not None:
            (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path, layers

    return make


def of_gemma(layers, x):
    out = {m: own["b_dec"].clone() for m, own in enumerate(layers)}
    for l, own in enumerate(layers):
        z = jumped(x[l], own["w_enc"], own["b_enc"], own["threshold"])
        for m in range(l, L):
            out[m] = out[m] + z @ own["w_dec"][:, m]
        if "affine_skip_connection" in own:
            out[l] = out[l] + x[l] @ own["affine_skip_connection"]
    return out


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "affine"])
def test_gemmascope_runs_as_there(gemma, x, skip):
    folder, layers = gemma(skip)
    agrees(load_transcoders(folder, **HOOKS), of_gemma(layers, x), x)


def test_the_hooks_of_gemmascope_are_read_or_asked_for(gemma):
    folder, _ = gemma()
    with pytest.raises(ValueError, match="pass hook_in="):
        load_transcoders(folder)
    modules = {"hf_hook_point_in": "pre_feedforward_layernorm.output"}
    folder, _ = gemma(config=modules | {"hf_hook_point_out": "post_feedforward_layernorm.output"})
    clt = load_transcoders(folder)
    assert (clt.hook_in(1), clt.hook_out(1)) == ("mlp.hook_in", "hook_mlp_out")


def test_a_layer_of_gemmascope_that_is_missing_is_noticed(gemma):
    folder, _ = gemma()
    for arguments in ({"path": folder, "layer": 1}, {"path": folder / "params_layer_1.safetensors"}):
        with pytest.raises(ValueError, match="it is loaded whole"):
            load_transcoders(**arguments, **HOOKS)
    (folder / "params_layer_1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"w_dec is of 3 layers, and there are files of \[0, 2\]"):
        load_transcoders(folder, **HOOKS)


# CLT-Forge ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def forge(tmp_path, draw):
    """forge(**changes of the configuration) -> a folder, and its tensors"""
    tensors = {
        "W_enc": draw(L, D, F),
        "b_enc": draw(L, F),
        "log_threshold": draw(L, F),
        "W_dec": draw(len(PAIRS), F, D),
        "b_dec": draw(len(PAIRS), D),
        "estimated_norm_scaling_factor_in": draw(L).exp(),
        "estimated_norm_scaling_factor_out": draw(L).exp(),
        "layer_mask": draw(L, len(PAIRS)),
        "feature_count": torch.zeros(L, F, dtype=torch.long),
    }

    def make(**changes):
        save_file(tensors, tmp_path / "clt_weights.safetensors")
        config = {"n_layers": L, "d_in": D, "d_latent": F, "cross_layer_decoders": True, "model_name": "gpt2"}
        (tmp_path / "clt_cfg.json").write_text(json.dumps(config | changes))
        return tmp_path, tensors

    return make


def of_forge(t, x):
    out = {m: torch.zeros(50, D) for m in range(L)}
    for n, (l, m) in enumerate(PAIRS):
        scaled = x[l] * t["estimated_norm_scaling_factor_in"][l]
        z = jumped(scaled, t["W_enc"][l], t["b_enc"][l], t["log_threshold"][l].exp())
        out[m] = out[m] + z @ t["W_dec"][n] + t["b_dec"][n]
    return {m: y / t["estimated_norm_scaling_factor_out"][m] for m, y in out.items()}


def test_clt_forge_runs_as_there(forge, x):
    folder, tensors = forge()
    agrees(load_transcoders(folder, **HOOKS), of_forge(tensors, x), x)


@pytest.mark.parametrize(
    ("changes", "options", "sentence"),
    [
        ({}, {}, "do not say which hooks were trained on; pass hook_in= and hook_out="),
        ({"feature_sharding": True}, HOOKS, "divided by features among several files"),
        ({"cross_layer_decoders": False}, HOOKS, "cross-layer JumpReLUs are"),
        ({"activation_fn": "topk", "k": 5}, HOOKS, "activation_fn='topk' are not supported"),
        ({"d_latent": F + 1}, HOOKS, f"the configuration says F={F + 1}, the tensors have {F}"),
    ],
    ids=["hooks", "shards", "per layer", "topk", "size"],
)
def test_what_clt_forge_files_cannot_say_is_refused(forge, changes, options, sentence):
    folder, _ = forge(**changes)
    with pytest.raises(ValueError, match=sentence):
        load_transcoders(folder, **options)


def test_matrices_of_clt_forge_that_do_not_fit_are_refused(forge):
    folder, tensors = forge()
    for changes, sentence in (
        ({"W_enc": tensors["W_enc"].transpose(1, 2).contiguous()}, "W_enc must be "),
        ({"W_dec": tensors["W_dec"][1:].clone(), "b_dec": tensors["b_dec"][1:].clone()}, "pairs of 3 layers, got 5"),
    ):
        save_file(load_file(folder / "clt_weights.safetensors") | changes, folder / "clt_weights.safetensors")
        with pytest.raises(ValueError, match=sentence):
            load_transcoders(folder, **HOOKS)
        forge()
