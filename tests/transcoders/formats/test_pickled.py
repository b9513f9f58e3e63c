"""Layouts that are pickles: read without running them. transcoder_circuits and dictionary_learning."""

from __future__ import annotations

import json
import pickle
import sys
import types

import pytest
import torch

from pullback.transcoders import TopK, load_transcoders
from tests.transcoders.formats.conftest import D, F

D_OUT = 7


class Explodes:
    def __reduce__(self):
        return (exec, ("raise RuntimeError('the pickle ran')",))


@pytest.fixture
def settings():
    """settings(**fields) -> an instance of the neighbour's configuration class, which is gone when a file is read"""
    module = types.ModuleType("sae_training.config")

    class LanguageModelSAERunnerConfig:
        pass

    LanguageModelSAERunnerConfig.__module__ = module.__name__
    LanguageModelSAERunnerConfig.__qualname__ = "LanguageModelSAERunnerConfig"
    module.LanguageModelSAERunnerConfig = LanguageModelSAERunnerConfig
    sys.modules |= {"sae_training": types.ModuleType("sae_training"), module.__name__: module}

    def make(**fields):
        config = LanguageModelSAERunnerConfig()
        config.__dict__ |= {"device": torch.device("cpu"), "dtype": torch.float32, "lr": 1e-3, "seed": 42} | fields
        return config

    yield make
    sys.modules.pop("sae_training.config", None)
    sys.modules.pop("sae_training", None)


@pytest.fixture
def circuits(tmp_path, draw, settings):
    """circuits(is_transcoder=..., **changes of tensors) -> file, tensors"""

    def make(is_transcoder=True, cfg=None, **changes):
        d_out = D_OUT if is_transcoder else D
        tensors = {"W_enc": draw(D, F), "b_enc": draw(F), "W_dec": draw(F, d_out), "b_dec": draw(D)}
        if is_transcoder:
            tensors["b_dec_out"] = draw(d_out)
        fields = {
            "model_name": "gpt2-small",
            "hook_point": "blocks.8.ln2.hook_normalized",
            "hook_point_layer": 8,
            "out_hook_point": "blocks.8.hook_mlp_out",
            "out_hook_point_layer": 8,
            "is_transcoder": is_transcoder,
            "d_in": D,
            "d_out": d_out,
        } | (cfg or {})
        file = tmp_path / "final_sparse_autoencoder_gpt2-small_blocks.8.ln2.hook_normalized_37.pt"
        torch.save({"cfg": settings(**fields), "state_dict": tensors | changes}, file)
        sys.modules.pop("sae_training.config")
        sys.modules.pop("sae_training")
        return file, tensors

    return make


def test_a_transcoder_runs_as_there_with_its_input_bias_folded(circuits, square_x):
    file, t = circuits()
    expected = torch.relu((square_x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) @ t["W_dec"] + t["b_dec_out"]
    for path in (file, file.parent):
        tc = load_transcoders(path)[8]
        torch.testing.assert_close(tc(square_x), expected, rtol=1e-4, atol=1e-5)
        assert (tc.hook_in, tc.hook_out, tc.d_out) == ("ln2.hook_normalized", "hook_mlp_out", D_OUT)
    assert torch.equal(tc.b_dec, t["b_dec_out"])


def test_an_autoencoder_has_one_bias_for_both(circuits, square_x):
    file, t = circuits(is_transcoder=False, cfg={"hook_point": "blocks.2.hook_resid_pre"})
    tc = load_transcoders(file)[2]
    expected = torch.relu((square_x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) @ t["W_dec"] + t["b_dec"]
    torch.testing.assert_close(tc(square_x), expected, rtol=1e-4, atol=1e-5)
    assert tc.hook_in == tc.hook_out == "hook_resid_pre"


def test_hooks_with_the_layer_beside_them(circuits):
    names = {"hook_point": "blocks.{layer}.hook_resid_mid", "out_hook_point": "blocks.{layer}.hook_mlp_out"}
    assert load_transcoders(circuits(cfg=names)[0]).hook_in(8) == "hook_resid_mid"


@pytest.mark.parametrize(("name", "shape"), [("W_enc", (F, D)), ("W_dec", (D_OUT, F))], ids=["W_enc", "W_dec"])
def test_a_matrix_the_other_way_round_is_refused(circuits, name, shape):
    file, _ = circuits(**{name: torch.zeros(shape)})
    with pytest.raises(ValueError, match=rf"transcoder_circuits: {name} must be .*\(transposed\?\)"):
        load_transcoders(file)


@pytest.mark.parametrize("place", ["beside", "inside the settings", "bare"])
def test_code_in_a_pickle_does_not_run(tmp_path, place):
    file = tmp_path / "final_sparse_autoencoder_x.pt"
    if place == "bare":
        file.write_bytes(pickle.dumps(Explodes()))
    else:
        content = {"cfg": {"x": Explodes()} if place != "beside" else {}, "state_dict": {}, "more": Explodes()}
        torch.save(content, file)
    with pytest.raises(ValueError, match="refused because loading it could run code"):
        load_transcoders(file)


def test_other_contents_and_damage_are_named(tmp_path, circuits):
    file = tmp_path / "a.pt"
    torch.save({"weights": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match=r"holds cfg and state_dict, this one \['weights'\]"):
        load_transcoders(file)
    torch.save({"cfg": {}, "state_dict": {"W_enc": "words", "b_dec": torch.zeros(2)}}, file)
    with pytest.raises(ValueError, match=r"\['W_enc'\] are not tensors"):
        load_transcoders(file)
    file.write_bytes(circuits()[0].read_bytes()[:900])
    with pytest.raises(ValueError, match="damaged"):
        load_transcoders(file)


# dictionary_learning


TRAINER = {
    "trainer_class": "TopKTrainer",
    "dict_class": "AutoEncoderTopK",
    "activation_dim": D,
    "dict_size": F,
    "k": 5,
    "layer": 4,
    "submodule_name": "resid_post_layer_4",
}


@pytest.fixture
def dictionary(tmp_path, draw):
    """dictionary(tensors=..., **trainer) -> folder, tensors"""

    def make(folder="trainer_0", tensors=None, **changes):
        weights = {
            "encoder.weight": draw(F, D),
            "encoder.bias": draw(F),
            "decoder.weight": draw(D, F),
            "b_dec": draw(D),
        }
        weights |= tensors or {}
        place = tmp_path / folder
        place.mkdir(parents=True, exist_ok=True)
        torch.save(weights | {"k": torch.tensor(5), "threshold": torch.tensor(0.2)}, place / "ae.pt")
        (place / "config.json").write_text(json.dumps({"trainer": TRAINER | changes, "buffer": {}}))
        return place, weights

    return make


def test_a_dictionary_runs_as_there(dictionary, square_x):
    folder, t = dictionary()
    values, ids = torch.relu((square_x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]).topk(5)
    z = torch.zeros(len(square_x), F).scatter(1, ids, values)
    expected = z @ t["decoder.weight"].T + t["b_dec"]
    tc = load_transcoders(folder)[4]
    torch.testing.assert_close(tc(square_x), expected, rtol=1e-4, atol=1e-5)
    assert (tc.activation, tc.hook_in, tc.hook_out) == (TopK(5), "hook_resid_post", "hook_resid_post")
    dictionary("trainer_1", layer=6)
    assert load_transcoders(folder.parent).layers == [4, 6]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dict_class": "GatedAutoEncoder"}, "dict_class 'GatedAutoEncoder' is not supported"),
        ({"k": 6}, "k is 5 in the weights and 6 in config.json"),
        ({"dict_size": D, "activation_dim": F}, "the configuration says F=11, the tensors have 37"),
        ({"submodule_name": "odd"}, "submodule 'odd' is not known here; pass hook_in="),
        ({"layer": None}, "names no layer; pass layer="),
        ({"tensors": {"decoder.weight": torch.zeros(F, D)}}, r"decoder.weight must be \[d_out, F\].*\(transposed\?\)"),
        ({"tensors": {"encoder.weight": torch.zeros(D, F)}}, r"encoder.weight must be \[F, d_in\].*\(transposed\?\)"),
        ({"tensors": {"b_dec": Explodes()}}, "refused because loading it could run code"),
    ],
    ids=["class", "k", "sizes", "module", "layer", "decoder", "encoder", "code"],
)
def test_what_cannot_be_read_is_refused(dictionary, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_transcoders(dictionary(**changes)[0])
