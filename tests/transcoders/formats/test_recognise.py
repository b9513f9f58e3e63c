"""The layout is found by the names of the files; two that fit, or none, are refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from pullback.transcoders import ReLU, TopK, TranscoderSet, load_transcoders
from pullback.transcoders.formats.recognise import recognise
from tests.transcoders.formats.conftest import D, F


@pytest.fixture
def touch(tmp_path):
    """touch(*names) -> folder with empty files of these names"""

    def make(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("names", "layout"),
    [
        (["config.yaml", "layer_0.safetensors", "wandb-config.yaml"], "pullback"),
        (["config.yaml", "layer_0.safetensors", "features/index.json.gz", "wanb-config.yaml"], "pullback"),
        (["config.yaml"], "circuit-tracer"),
        (["config.yaml", "W_enc_0.safetensors", "W_dec_0.safetensors"], "circuit-tracer-clt"),
        (["params_layer_0.safetensors", "config.json"], "gemmascope2-clt"),
        (["clt_cfg.json", "clt_weights.safetensors"], "clt-forge"),
        (["cfg.json", "sae_weights.safetensors", "sparsity.safetensors", "runner_cfg.json"], "saelens"),
        (["release/layer_1/cfg.json", "release/layer_1/sae_weights.safetensors"], "saelens"),
        (["cfg.json", "sae.safetensors"], "sparsify"),
        (
            ["config.json", "state.pt", "optimizer_0.pt", "layers.0.mlp/cfg.json", "layers.0.mlp/sae.safetensors"],
            "sparsify",
        ),
        (["layer_0/width_16k/average_l0_76/params.npz"], "gemmascope"),
        (["layer_0_width_16k_l0_small/params.safetensors", "layer_0_width_16k_l0_small/config.json"], "gemmascope2"),
        (["trainer_0/ae.pt", "trainer_0/config.json", "trainer_0/checkpoints/ae_100.pt"], "dictionary_learning"),
        (["config.yaml", "checkpoint.safetensors"], "crosslayer-transcoder"),
        (["config.json", "sae_weights.safetensors"], "llamascopium"),
        (["cfg.json", "model.safetensors", "trainer_state.pt"], "crosslayer-coding"),
        (["cfg.json", "clt_checkpoint_latest.safetensors"], "crosslayer-coding"),
        (["final_sparse_autoencoder_gpt2-small_blocks.3.ln2.hook_normalized_24576.pt"], "transcoder_circuits"),
    ],
    ids=str,
)
def test_every_layout_is_known_by_its_files(touch, names, layout):
    assert recognise(touch(*names)) == layout


def test_two_layouts_are_refused_by_name_unless_one_is_named(touch, make, square_x):
    folder = touch("notes.txt")
    tc = make(TopK(5), d_in=D)
    TranscoderSet({0: tc}).save(folder)
    (folder / "cfg.json").write_text("{}")
    save_file({"x": torch.zeros(1)}, folder / "sae.safetensors")
    with pytest.raises(ValueError, match=r"fits 2 layouts: pullback \(.*; sparsify \(.* format="):
        load_transcoders(folder)
    assert torch.equal(load_transcoders(folder, format="pullback")[0](square_x), tc(square_x))


def test_none_is_refused_with_what_is_known(touch):
    with pytest.raises(ValueError, match=r"no layout that is known here\. Known are pullback: config.yaml and layer_0"):
        load_transcoders(touch("readme.md"))
    with pytest.raises(ValueError, match="format 'gguf' is unknown; it must be one of pullback, "):
        load_transcoders(touch("readme.md"), format="gguf")


@pytest.mark.parametrize(
    ("W_enc", "sentence"),
    [
        ((F, D), "the tensors of circuit-tracer; tensors alone do not say"),
        ((D, F), "the tensors of SAELens; tensors alone do not say"),
        ((D, D), "2 layouts: circuit-tracer and SAELens"),
        ((F, F, D), "fits no layout that is known here"),
    ],
    ids=["F d", "d F", "square", "cube"],
)
def test_loose_tensors_name_every_convention_their_shapes_fit(tmp_path, W_enc, sentence):
    features = D if W_enc == (D, D) else F
    tensors = {"W_enc": torch.zeros(W_enc), "b_enc": torch.zeros(features), "b_dec": torch.zeros(D)}
    save_file(tensors | {"W_dec": torch.zeros(features, D)}, tmp_path / "weights.safetensors")
    for path in (tmp_path, tmp_path / "weights.safetensors"):
        with pytest.raises(ValueError, match=sentence):
            load_transcoders(path)


def test_a_layer_file_goes_by_the_configuration_beside_it(make, tmp_path, x):
    sets = TranscoderSet({l: make(ReLU(), seed=l) for l in (0, 1, 2)})
    sets.save(tmp_path)
    loaded = load_transcoders(tmp_path / "layer_1.safetensors")
    assert loaded.layers == [1]
    assert torch.equal(loaded[1](x), sets[1](x))
    (tmp_path / "layer_2.safetensors").unlink()
    assert load_transcoders(tmp_path / "layer_1.safetensors").layers == [1]
    with pytest.raises(ValueError, match="has no layer 0"):
        load_transcoders(tmp_path / "layer_1.safetensors", layer=0)


def test_what_the_caller_says_overrules_the_files(make, tmp_path):
    TranscoderSet({0: make(ReLU())}).save(tmp_path)
    tc = load_transcoders(tmp_path, hook_in="ln2.hook_normalized", hook_out="mlp.hook_out", activation=TopK(3))[0]
    assert (tc.hook_in, tc.hook_out, tc.activation) == ("ln2.hook_normalized", "mlp.hook_out", TopK(3))
    assert load_transcoders(tmp_path, dtype=torch.float64)[0].dtype == torch.float64


def test_a_file_in_the_folder_counts_before_folders_below_it(make, tmp_path):
    TranscoderSet({0: make(ReLU())}).save(tmp_path)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "cfg.json").write_text(json.dumps({}))
    (tmp_path / "old" / "sae.safetensors").touch()
    assert recognise(tmp_path) == "pullback"
