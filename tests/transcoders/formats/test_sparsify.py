"""EleutherAI sparsify: what it would write is read as it would run it, and what is written is read back the same."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from pullback.transcoders import BatchTopK, JumpReLU, ReLU, TopK, TranscoderSet, load_transcoders
from tests.transcoders.formats.conftest import D, F

CONFIG = {
    "activation": "topk",
    "expansion_factor": 32,
    "normalize_decoder": True,
    "num_latents": F,
    "k": 5,
    "multi_topk": False,
    "skip_connection": False,
    "transcode": True,
    "d_in": D,
}


@pytest.fixture
def tensors(draw):
    return {
        "encoder.weight": draw(F, D),
        "encoder.bias": draw(F),
        "W_dec": draw(F, D),
        "b_dec": draw(D),
        "W_skip": draw(D, D),
    }


@pytest.fixture
def checkpoint(tmp_path, tensors, write):
    """checkpoint(hookpoint, weights=..., **config) -> the run's folder"""

    def make(hookpoint="layers.3.mlp", weights=None, **changes):
        config = CONFIG | changes
        chosen = {
            name: tensor
            for name, tensor in (weights or tensors).items()
            if name != "W_skip" or config["skip_connection"] or weights is not None
        }
        write(tmp_path / "run" / hookpoint, "sae.safetensors", chosen, "cfg.json", config)
        return tmp_path / "run"

    return make


def theirs(t, x, k, *, subtract, skip):
    """The forward pass of a sparse coder, from the description of the layout."""
    centred = x - t["b_dec"] if subtract else x
    h = torch.relu(centred @ t["encoder.weight"].T + t["encoder.bias"])
    values, ids = h.topk(k)
    y = torch.zeros_like(h).scatter(1, ids, values) @ t["W_dec"] + t["b_dec"]
    return y + x @ t["W_skip"].T if skip else y


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
@pytest.mark.parametrize(("transcode", "old"), [(True, None), (True, True), (False, None)], ids=["tc", "old tc", "sae"])
def test_a_checkpoint_runs_as_there(checkpoint, tensors, square_x, transcode, old, skip):
    run = checkpoint(transcode=transcode, skip_connection=skip)
    sets = load_transcoders(run, subtract_b_dec=old)
    expected = theirs(tensors, square_x, 5, subtract=old or not transcode, skip=skip)
    torch.testing.assert_close(sets[3](square_x), expected, rtol=1e-5, atol=1e-5)
    hooks = ("mlp.hook_in", "hook_mlp_out") if transcode else ("hook_mlp_out", "hook_mlp_out")
    assert (sets.hook_in(3), sets.hook_out(3)) == hooks


@pytest.mark.parametrize("name", ["layers.7.mlp", "h.7.mlp", "model.layers.7.mlp", "gpt_neox.layers.7.mlp"])
def test_hookpoints_of_every_family_name_the_layer(checkpoint, name):
    run = checkpoint(name)
    assert load_transcoders(run).layers == [7]
    assert load_transcoders(run / name).layers == [7]
    assert load_transcoders(run / name / "sae.safetensors", format="sparsify", layer=7).layers == [7]


def test_a_run_root_has_every_layer_and_other_files(checkpoint):
    run = checkpoint("layers.0.mlp")
    checkpoint("layers.10.mlp/seed0", k=4)
    (run / "config.json").write_text("{}")
    (run / "state.pt").write_bytes(b"not looked at")
    sets = load_transcoders(run)
    assert [(layer, tc.activation) for layer, tc in sets.items()] == [(0, TopK(5)), (10, TopK(4))]
    assert load_transcoders(run, layer=10).layers == [10]


@pytest.mark.parametrize(
    ("hookpoint", "hook"),
    [("layers.2", "hook_resid_post"), ("h.2.attn", "hook_attn_out"), ("layers.2.self_attn", "hook_attn_out")],
)
def test_autoencoders_stand_at_the_modules_output(checkpoint, hookpoint, hook):
    sets = load_transcoders(checkpoint(hookpoint, transcode=False))
    assert (sets.hook_in(2), sets.hook_out(2)) == (hook, hook)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
def test_forward_is_bitwise_equal_after_a_round_trip(make, square_x, round_trip, skip, dtype, reading):
    def build(seed, **options):
        return make(TopK(5), seed=seed, skip=skip, dtype=dtype, d_in=D, **options)

    sets = TranscoderSet({1: build(0, reading=reading), 4: build(1, hook_in="ln2.hook_normalized")})
    loaded = round_trip(sets, "sparsify", hookpoint="h.{layer}.mlp")
    assert all(torch.equal(loaded[layer](square_x), sets[layer](square_x)) for layer in (1, 4))
    assert [loaded.hook_in(layer) for layer in loaded] == ["mlp.hook_in", "ln2.hook_normalized"]
    assert loaded[1].reading == reading


def test_saving_replaces_its_own_layers_and_nothing_else(make, tmp_path):
    run = tmp_path / "run"
    TranscoderSet({l: make(TopK(5), d_in=D) for l in (0, 1)}).save(run, "sparsify")
    (run / "notes").mkdir()
    TranscoderSet({1: make(TopK(3), d_in=D)}).save(run, "sparsify")
    assert sorted(os.listdir(run)) == ["layers.1.mlp", "notes"]
    assert load_transcoders(run)[1].activation == TopK(3)
    written = json.loads((run / "layers.1.mlp" / "cfg.json").read_text())
    assert CONFIG.keys() <= written.keys()
    assert (written["num_latents"], written["k"], written["transcode"]) == (F, 3, True)


@pytest.mark.parametrize("rule", [ReLU(), JumpReLU(0.5), BatchTopK(3), TopK(3, relu=False)], ids=repr)
def test_only_topk_can_be_written(make, tmp_path, rule):
    with pytest.raises(ValueError, match="layer 2: sparsify knows only TopK after a ReLU"):
        TranscoderSet({2: make(rule, d_in=D)}).save(tmp_path / "run", "sparsify")
    assert not (tmp_path / "run").exists()


def test_two_widths_and_odd_hookpoints_cannot_be_written(make, tmp_path):
    with pytest.raises(ValueError, match="one width, this transcoder goes from 13 to 11"):
        TranscoderSet({2: make(TopK(3))}).save(tmp_path / "run", "sparsify")
    with pytest.raises(ValueError, match=r'hookpoint must look like "layers.\{layer\}.mlp"'):
        TranscoderSet({2: make(TopK(3), d_in=D)}).save(tmp_path / "run", "sparsify", hookpoint="mlp")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"activation": "groupmax"}, "activation 'groupmax' is not supported"),
        ({"multi_topk": True}, "multi_topk is not supported"),
        ({"num_latents": 0}, r"the configuration says F=352, the tensors have 37"),
        ({"d_in": D + 1}, "the configuration says d_in=12, the tensors have 11"),
        ({"d_in": None}, "lacks d_in"),
        ({"skip_connection": True, "transcode": False, "hookpoint": "layers.3.attention.dense"}, "no hook is known"),
        ({"hookpoint": "embed"}, '"embed" is not a hookpoint like "layers.3.mlp"'),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_refused(checkpoint, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_transcoders(checkpoint(**changes))


def test_an_expansion_factor_stands_in_for_latents(checkpoint, draw):
    weights = {"encoder.weight": draw(22, D), "encoder.bias": draw(22), "W_dec": draw(22, D), "b_dec": draw(D)}
    assert load_transcoders(checkpoint(weights=weights, num_latents=0, expansion_factor=2))[3].d_sae == 22


@pytest.mark.parametrize("name", ["encoder.weight", "W_dec"])
def test_a_matrix_the_other_way_round_is_refused(checkpoint, tensors, name):
    weights = {key: t for key, t in tensors.items() if key != "W_skip"}
    run = checkpoint(weights=weights | {name: weights[name].T})
    with pytest.raises(ValueError, match=rf"{name} must be .*=\[37, 11\], got \[11, 37\] \(transposed\?\)"):
        load_transcoders(run)


def test_the_configuration_and_the_tensors_agree_on_a_skip_path(checkpoint, tensors):
    with pytest.raises(ValueError, match="skip_connection=False, but sae.safetensors has W_skip"):
        load_transcoders(checkpoint(weights=tensors))


def test_cross_layer_files_of_clt_training_are_named(checkpoint, tensors):
    run = checkpoint(weights=tensors | {"W_decs.1": torch.zeros(F, D)})
    with pytest.raises(ValueError, match="clt-training .* not supported"):
        load_transcoders(run)


def test_two_dictionaries_of_one_layer_are_refused(checkpoint):
    run = checkpoint("layers.3.mlp/seed0")
    checkpoint("layers.3.mlp/seed1")
    with pytest.raises(ValueError, match=r"layer 3 has two dictionaries, .*seed0 and .*seed1; name one"):
        load_transcoders(run)
    assert load_transcoders(run / "layers.3.mlp" / "seed1").layers == [3]


def test_damage_is_named(checkpoint):
    run = checkpoint()
    weights = run / "layers.3.mlp" / "sae.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-3])
    with pytest.raises(ValueError, match="damaged or cut off"):
        load_transcoders(run)
    weights.write_bytes(whole)
    (run / "layers.3.mlp" / "cfg.json").write_text("{")
    with pytest.raises(ValueError, match="not readable JSON"):
        load_transcoders(run)


def test_an_old_transcoder_differs_from_a_new_one(checkpoint, tensors, square_x):
    """The files are the same; only the caller knows, and is asked for nothing by default."""
    run = checkpoint()
    new, old = load_transcoders(run)[3], load_transcoders(run, subtract_b_dec=True)[3]
    shift = tensors["encoder.weight"].double() @ tensors["b_dec"].double()
    torch.testing.assert_close(old.b_enc.double(), tensors["encoder.bias"].double() - shift)
    assert not torch.allclose(new(square_x), old(square_x))


def test_tensors_are_stored_as_theirs(make, tmp_path):
    tc = make(TopK(5), skip=True, d_in=D)
    TranscoderSet({0: tc}).save(tmp_path / "run", "sparsify")
    stored = load_file(tmp_path / "run" / "layers.0.mlp" / "sae.safetensors")
    assert {name: list(t.shape) for name, t in stored.items()} == {
        "encoder.weight": [F, D],
        "encoder.bias": [F],
        "W_dec": [F, D],
        "b_dec": [D],
        "W_skip": [D, D],
    }
    save_file(stored, tmp_path / "again.safetensors")
