"""GemmaScope 1 and 2: read as their forward pass is described."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pullback.transcoders import load_transcoders
from tests.transcoders.formats.conftest import D, F

CONFIG = {
    "architecture": "jump_relu",
    "model_name": "google/gemma-3-1b-pt",
    "hf_hook_point_in": "model.layers.5.pre_feedforward_layernorm.output",
    "hf_hook_point_out": "model.layers.5.post_feedforward_layernorm.output",
    "affine_connection": False,
}


@pytest.fixture
def tensors(draw):
    return {
        "W_enc": draw(D, F),
        "b_enc": draw(F),
        "W_dec": draw(F, D),
        "b_dec": draw(D),
        "threshold": draw(F),
        "skip": draw(D, D),
    }


@pytest.fixture
def first(tmp_path, tensors):
    """first(folder, **changes) -> a folder as GemmaScope 1 has them"""

    def make(folder="gemma-scope-2b-pt-transcoders/layer_5/width_16k/average_l0_76", **changes):
        place = tmp_path / folder
        place.mkdir(parents=True, exist_ok=True)
        arrays = {name: t.numpy() for name, t in (tensors | changes).items() if name != "skip"}
        np.savez(place / "params.npz", **arrays)
        return place

    return make


@pytest.fixture
def second(tmp_path, tensors):
    """second(folder, skip=..., **config) -> a folder as GemmaScope 2 has them"""

    def make(folder="transcoder/layer_5_width_16k_l0_small", skip=False, weights=None, **changes):
        place = tmp_path / folder
        place.mkdir(parents=True, exist_ok=True)
        stored = {
            "w_enc": tensors["W_enc"],
            "w_dec": tensors["W_dec"],
            **{name: tensors[name] for name in ("b_enc", "b_dec", "threshold")},
        }
        if skip:
            stored["affine_skip_connection"] = tensors["skip"]
        stored |= weights or {}
        save_file({name: t.contiguous() for name, t in stored.items()}, place / "params.safetensors")
        (place / "config.json").write_text(json.dumps(CONFIG | {"affine_connection": skip} | changes))
        return place

    return make


def theirs(t, x, skip):
    h = x @ t["W_enc"] + t["b_enc"]
    y = h.relu() * (h > t["threshold"]) @ t["W_dec"] + t["b_dec"]
    return y + x @ t["skip"] if skip else y  # stored (d_in, d_out)


def test_the_first_runs_as_there(first, tensors, square_x):
    for path in (first(), first() / "params.npz"):
        tc = load_transcoders(path)[5]
        torch.testing.assert_close(tc(square_x), theirs(tensors, square_x, False), rtol=1e-5, atol=1e-5)
        assert (tc.hook_in, tc.hook_out) == ("ln2.hook_normalized", "hook_mlp_out")


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "affine"])
def test_the_second_runs_as_there(second, tensors, square_x, skip):
    tc = load_transcoders(second(skip=skip))[5]
    torch.testing.assert_close(tc(square_x), theirs(tensors, square_x, skip), rtol=1e-5, atol=1e-5)
    assert (tc.hook_in, tc.hook_out) == ("mlp.hook_in", "hook_mlp_out")


def test_a_folder_with_one_a_layer_is_a_set(first):
    first("x-transcoders/layer_0/width_16k/average_l0_76")
    root = first("x-transcoders/layer_12/width_16k/average_l0_6").parents[2]
    assert load_transcoders(root).layers == [0, 12]
    assert load_transcoders(root, layer=12).layers == [12]
    first("x-transcoders/layer_12/width_65k/average_l0_6")
    with pytest.raises(ValueError, match=r"layer 12 has two dictionaries, .*width_16k.* and .*width_65k.*name one"):
        load_transcoders(root)


def test_autoencoders_look_alike_so_the_place_is_asked_for(first):
    folder = first("gemma-scope-2b-pt-res/layer_5/width_16k/average_l0_76")
    with pytest.raises(ValueError, match="transcoders and autoencoders look alike.*pass hook_in= and hook_out="):
        load_transcoders(folder)
    tc = load_transcoders(folder, hook_in="hook_resid_post", hook_out="hook_resid_post")[5]
    assert tc.hook_in == tc.hook_out == "hook_resid_post"


@pytest.mark.parametrize("name", ["W_enc", "W_dec"])
def test_a_matrix_the_other_way_round_is_refused(first, second, tensors, name):
    with pytest.raises(ValueError, match=rf"not the layout of GemmaScope: {name} must be .*\(transposed\?\)"):
        load_transcoders(first(**{name: tensors[name].T}))
    with pytest.raises(ValueError, match=rf"GemmaScope 2: {name.lower()} must be .*\(transposed\?\)"):
        load_transcoders(second(weights={name.lower(): tensors[name].T}))


def test_square_matrices_are_read_by_the_table(first, second, draw):
    W = {"W_enc": draw(D, D), "W_dec": draw(D, D), "b_enc": draw(D), "threshold": draw(D)}
    assert torch.equal(load_transcoders(first(**W))[5].W_enc, W["W_enc"].T)
    lower = {"w_enc": W["W_enc"], "w_dec": W["W_dec"], "b_enc": W["b_enc"], "threshold": W["threshold"]}
    tc = load_transcoders(second(skip=True, weights=lower | {"affine_skip_connection": W["W_dec"].clone()}))[5]
    assert torch.equal(tc.W_enc, W["W_enc"].T)
    assert torch.equal(tc.W_skip, W["W_dec"].T)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architecture": "topk"}, "architecture must be jump_relu"),
        ({"affine_connection": True}, "says affine_connection=True, but the file lacks"),
        (
            {"hf_hook_point_in": "model.layers.5.mlp.odd"},
            "'model.layers.5.mlp.odd', which is not known here; pass hook_in=",
        ),
        (
            {"hf_hook_point_in": "model.layers.6.pre_feedforward_layernorm.output"},
            r"name different layers, \[5, 6, 5\]",
        ),
    ],
    ids=str,
)
def test_a_configuration_that_does_not_fit_is_refused(second, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_transcoders(second(**changes))


def test_the_layer_is_asked_for_where_nothing_names_it(first):
    folder = first("transcoders/somewhere")
    with pytest.raises(ValueError, match="names the layer; pass layer="):
        load_transcoders(folder)
    assert load_transcoders(folder, layer=3).layers == [3]


class Explodes:
    def __reduce__(self):
        return (exec, ("raise RuntimeError('the pickle ran')",))


@pytest.mark.parametrize("how", ["array of objects", "bare pickle", "cut off", "empty"])
def test_pickles_and_damage_are_refused_without_running_anything(first, how):
    file = first() / "params.npz"
    if how == "array of objects":
        np.savez(file, W_enc=np.array([Explodes()], dtype=object))
    else:
        content = (
            pickle.dumps(Explodes()) if how == "bare pickle" else file.read_bytes()[: 500 if how == "cut off" else 0]
        )
        file.write_bytes(content)
    with pytest.raises(ValueError, match="damaged, or holds something besides arrays of numbers"):
        load_transcoders(file.parent)
