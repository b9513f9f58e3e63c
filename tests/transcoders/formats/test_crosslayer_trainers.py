"""crosslayer-transcoder, crosslayer-coding, llamascopium: read as their forward passes are described."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from pullback.transcoders import CrossLayerTranscoder, JumpReLU, ReLU, load_transcoders
from tests.transcoders.formats.conftest import D, F

L = 3
HOOKS: dict[str, Any] = {"hook_in": "ln2.hook_normalized", "hook_out": "hook_mlp_out"}
PAIRS = [(l, m) for l in range(L) for m in range(l, L)]


@pytest.fixture
def draw():
    """draw(*shape) -> the next random float64 tensor of a fixed stream"""
    g = torch.Generator().manual_seed(3)
    return lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)


@pytest.fixture
def x():
    """Float64[Tensor, 'L 50 D'], far from standardised"""
    g = torch.Generator().manual_seed(7)
    return torch.randn(L, 50, D, generator=g, dtype=torch.float64) * 2 + 1


def load(path, **options: Any) -> CrossLayerTranscoder:
    loaded = load_transcoders(path, **options)
    assert isinstance(loaded, CrossLayerTranscoder)
    return loaded


def agrees(loaded, expected, x):
    assert loaded.layers == list(range(L))
    got = loaded({layer: x[layer].to(loaded[layer].W_enc.dtype) for layer in range(L)})
    tolerance = 1e-4 if loaded[0].W_enc.dtype == torch.float32 else 1e-10
    for layer, y in got.items():
        torch.testing.assert_close(y.double(), expected[layer], rtol=tolerance, atol=tolerance)


# crosslayer-transcoder ------------------------------------------------------------------------------------------------


def part(name, **init_args):
    return {"class_path": f"crosslayer_transcoder.model.{name}", "init_args": init_args}


@pytest.fixture
def lightning(tmp_path, draw):
    """lightning(tensors changed or, where None, left out, **parts of the configuration) -> a folder, and its tensors"""
    widths = {"n_layers": L, "d_features": F, "d_acts": D}
    parts = {
        "encoder": part("clt.Encoder", **widths),
        "decoder": part("clt.CrosslayerDecoder", **widths),
        "nonlinearity": part("jumprelu.JumpReLU", theta=0.03, bandwidth=0.01, n_layers=L, d_features=F),
        "input_standardizer": part("standardize.DimensionwiseInputStandardizer", n_layers=L, activation_dim=D),
        "output_standardizer": part("standardize.DimensionwiseOutputStandardizer", n_layers=L, activation_dim=D),
    }
    tensors = {
        "encoder.W": draw(L, D, F),
        "encoder.b": draw(L, F),
        "nonlinearity.theta": draw(1, L, F),  # the negative ones act as 0
        "nonlinearity.bandwidth": torch.tensor(0.01),
        **{f"decoder.W_{m}": draw(m + 1, F, D) for m in range(L)},
        "decoder.b": draw(L, D),
        "input_standardizer.mean": draw(L, D),
        "input_standardizer.std": draw(L, D).exp(),
        "output_standardizer.mean": draw(L, D),
        "output_standardizer.std": draw(L, D).exp(),
    }

    def make(changed=None, **changes):
        own = {name: tensor for name, tensor in (tensors | (changed or {})).items() if tensor is not None}
        model = part("clt.CrossLayerTranscoder", **(parts | changes)) | {"is_folded": False}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": model}))
        save_file({name: tensor.contiguous() for name, tensor in own.items()}, tmp_path / "checkpoint.safetensors")
        return tmp_path, own

    return make


def of_lightning(t, x):
    def standardizer(side):
        neutral = torch.zeros(L, 1), torch.ones(L, 1)
        return (
            t.get(f"{side}_standardizer.{name}", other) for name, other in zip(("mean", "std"), neutral, strict=True)
        )

    mean, std = standardizer("input")
    h = torch.einsum("lnd,ldf->lnf", (x - mean[:, None]) / std[:, None], t["encoder.W"]) + t["encoder.b"][:, None]
    theta = t["nonlinearity.theta"][0, :, None] if "nonlinearity.theta" in t else torch.zeros(())
    z = h * ((h > theta) & (h > 0))
    mean, std = standardizer("output")
    y = [torch.einsum("lnf,lfd->nd", z[: m + 1], t[f"decoder.W_{m}"]) + t["decoder.b"][m] for m in range(L)]
    return [own * std[m] + mean[m] for m, own in enumerate(y)]


STANDARDIZERS = [f"{side}_standardizer" for side in ("input", "output")]
WITHOUT = {f"{part}.{name}": None for part in STANDARDIZERS for name in ("mean", "std")}


@pytest.mark.parametrize(
    ("changed", "changes", "activation"),
    [
        ({}, {}, JumpReLU),
        (WITHOUT, dict.fromkeys(STANDARDIZERS), JumpReLU),
        (
            {"nonlinearity.theta": None, "nonlinearity.bandwidth": None},
            {"nonlinearity": part("jumprelu.ReLU")},
            ReLU,
        ),
    ],
    ids=["standardised", "folded", "relu"],
)
def test_crosslayer_transcoder_runs_as_there(lightning, x, changed, changes, activation):
    folder, tensors = lightning(changed, **changes)
    clt = load(folder, **HOOKS)
    agrees(clt, of_lightning(tensors, x), x)
    assert isinstance(clt[1].activation, activation)
    assert clt[0].W_enc.dtype == torch.float64  # as stored
    agrees(load(folder, dtype=torch.float32, **HOOKS), of_lightning(tensors, x), x)


@pytest.mark.parametrize(
    ("changed", "changes", "options", "sentence"),
    [
        ({}, {}, {}, "do not say which hooks were trained on"),
        ({}, {"decoder": part("clt.Decoder")}, HOOKS, "decoder 'Decoder' is not supported"),
        ({}, {"nonlinearity": part("topk.BatchTopK", k=3)}, HOOKS, "nonlinearity 'BatchTopK' is not supported"),
        (
            {},
            {"input_standardizer": part("standardize.SamplewiseInputStandardizer")},
            HOOKS,
            "'SamplewiseInputStandardizer' is not supported",
        ),
        (WITHOUT, {}, HOOKS, "says input_standardizer DimensionwiseInputStandardizer, which has the tensors"),
        ({}, dict.fromkeys(STANDARDIZERS), HOOKS, "says input_standardizer None, which has not the tensors"),
        ({"output_standardizer.std": None}, {}, HOOKS, "output_standardizer DimensionwiseOutputStandardizer"),
        ({"decoder.W_1": None}, {}, HOOKS, r"\['decoder.W_1'\] are missing"),
        ({"decoder.W_1": torch.zeros(3, F, D)}, {}, HOOKS, "up to its target i, got {'decoder.W_1'"),
        ({"encoder.W": torch.zeros(L, F, D)}, {}, HOOKS, "encoder.W must be "),
        ({f"decoder.W_{m}": torch.zeros(m + 1, D, F) for m in range(L)}, {}, HOOKS, "decoder.W must be "),
        ({"decoder.W_1": torch.zeros(2, D, F)}, {}, HOOKS, "do not fit together"),
        ({"nonlinearity.theta": torch.zeros(L, F)}, {}, HOOKS, "nonlinearity.theta must be "),
        ({"input_standardizer.mean": torch.zeros(L)}, {}, HOOKS, "input_standardizer.mean must be "),
        ({"more": torch.zeros(1)}, {}, HOOKS, r"\['more'\] are unknown"),
    ],
)
def test_what_crosslayer_transcoder_files_cannot_say_is_refused(lightning, changed, changes, options, sentence):
    folder, _ = lightning(changed, **changes)
    with pytest.raises(ValueError, match=sentence):
        load(folder, **options)


def test_lightning_modules_are_not_models(lightning):
    folder, _ = lightning()
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": part("clt_lightning.CrossLayerTranscoderModule")}))
    with pytest.raises(ValueError, match="must be a CrossLayerTranscoder, got 'CrossLayerTranscoderModule'"):
        load(folder, **HOOKS)


# crosslayer-coding ----------------------------------------------------------------------------------------------------

PLACES = {
    "none": [f"{l}->{m}" for l, m in PAIRS],
    "per_source": [str(l) for l in range(L)],
    "per_target": [str(l) for l in range(L)],
}


@pytest.fixture
def coding(tmp_path, draw):
    """coding(tensors changed or, where None, left out, statistics or None, **configuration)"""

    def make(
        changed=None, statistics=None, name="model.safetensors", threshold="theta_manager.log_threshold", **changes
    ):
        config = {
            "num_features": F,
            "num_layers": L,
            "d_model": D,
            "normalization_method": "none" if statistics is None else "mean_std",
            "activation_fn": "jumprelu",
            "decoder_tying": "none",
            "tl_input_template": "blocks.{}.ln2.hook_normalized",
            "tl_output_template": "blocks.{}.hook_mlp_out",
        } | changes
        encoder, decoder = "encoder_module.encoders", "decoder_module.decoders"
        tensors = {
            **{f"{encoder}.{l}.weight": draw(F, D) for l in range(L)},
            **{f"{encoder}.{l}.bias_param": draw(F) for l in range(L)},
            **{f"{decoder}.{place}.weight": draw(D, F) for place in PLACES[config["decoder_tying"]]},
            **{f"{decoder}.{place}.bias_param": draw(D) for place in PLACES[config["decoder_tying"]]},
            threshold: draw(L, F),
        }
        own = {name: tensor for name, tensor in (tensors | (changed or {})).items() if tensor is not None}
        save_file({name: tensor.contiguous() for name, tensor in own.items()}, tmp_path / name)
        (tmp_path / "cfg.json").write_text(json.dumps(config))
        if statistics is not None:
            (tmp_path / "norm_stats.json").write_text(json.dumps(statistics))
        return tmp_path, own

    return make


@pytest.fixture
def statistics(draw):
    """What norm_stats.json holds."""

    def one():
        return {"mean": draw(D).tolist(), "std": draw(D).exp().tolist()}

    return {str(layer): {"inputs": one(), "targets": one()} for layer in range(L)}


def of_coding(t, x, tying="none", statistics=None):
    def normal(layer, key):
        own = (statistics or {})[str(layer)][key]
        return torch.tensor(own["mean"], dtype=x.dtype), torch.tensor(own["std"], dtype=x.dtype) + 1e-6

    z, out = [], []
    threshold = next((tensor for name, tensor in t.items() if name.endswith("log_threshold")), None)
    for l in range(L):
        mean, std = normal(l, "inputs") if statistics else (0, 1)
        encoder = f"encoder_module.encoders.{l}"
        h = (x[l] - mean) / std @ t[f"{encoder}.weight"].T + t[f"{encoder}.bias_param"]
        z.append(h.relu() if threshold is None else h * (h >= threshold[l].exp()))
    for m in range(L):
        y = torch.zeros_like(x[m])
        if tying == "per_target":
            decoder = f"decoder_module.decoders.{m}"
            y = sum(z[: m + 1]) @ t[f"{decoder}.weight"].T + t[f"{decoder}.bias_param"]
        else:
            for l in range(m + 1):
                decoder = f"decoder_module.decoders.{l if tying == 'per_source' else f'{l}->{m}'}"
                y = y + z[l] @ t[f"{decoder}.weight"].T + t[f"{decoder}.bias_param"]
        mean, std = normal(m, "targets") if statistics else (0, 1)
        out.append(y * std + mean)
    return out


@pytest.mark.parametrize("normalised", [False, True], ids=["plain", "normalised"])
@pytest.mark.parametrize("tying", list(PLACES))
def test_crosslayer_coding_runs_as_there(coding, statistics, x, tying, normalised):
    said = statistics if normalised else None
    folder, tensors = coding(statistics=said, decoder_tying=tying)
    clt = load(folder)
    agrees(clt, of_coding(tensors, x, tying, said), x)
    assert clt.decoder_tying == ("none" if normalised and tying == "per_source" else tying)
    assert (clt.hook_in(1), clt.hook_out(1)) == ("ln2.hook_normalized", "hook_mlp_out")


def test_older_names_and_relus_of_crosslayer_coding(coding, x):
    folder, tensors = coding(threshold="log_threshold", name="clt_checkpoint_latest.safetensors")
    agrees(load(folder), of_coding(tensors, x), x)
    folder, tensors = coding({"log_threshold": None}, threshold="log_threshold", activation_fn="relu")
    (folder / "clt_checkpoint_latest.safetensors").unlink()
    clt = load(folder)
    agrees(clt, of_coding(tensors, x), x)
    assert isinstance(clt[0].activation, ReLU)


def test_a_feature_of_crosslayer_coding_that_equals_its_threshold_is_active(coding):
    bias = torch.full((F,), 0.5, dtype=torch.float64)
    log = {"theta_manager.log_threshold": bias.log().expand(L, F)}
    folder, _ = coding(log | {f"encoder_module.encoders.{l}.bias_param": bias.log().exp() for l in range(L)})
    clt = load(folder)
    assert (clt[0].encode(torch.zeros(1, D, dtype=torch.float64)).to_dense() == 0.5).all()


@pytest.mark.parametrize(
    ("changed", "changes", "sentence"),
    [
        ({}, {"tl_input_template": None}, "tl_input_template is None, which names no place in a block; pass hook_in="),
        ({}, {"activation_fn": "batchtopk"}, "ranks the features of all layers together"),
        ({}, {"activation_fn": "relu"}, "says activation_fn 'relu', but the file has log_threshold"),
        ({}, {"normalization_method": "sqrt_d_model"}, "normalization_method 'sqrt_d_model' is not supported"),
        ({}, {"normalization_method": "mean_std"}, "norm_stats.json, which says how, is not in it"),
        ({}, {"skip_connection": True}, "skip_connection=True is not supported"),
        ({}, {"enable_feature_scale": True}, "enable_feature_scale=True is not supported"),
        ({}, {"num_features": F + 1}, f"the configuration says F={F + 1}, the tensors have {F}"),
        ({"decoder_module.decoders.0->2.weight": None}, {}, "'decoder_module.decoders.0->2.weight'. are missing"),
        ({f"encoder_module.encoders.{l}.weight": torch.zeros(D, F) for l in range(L)}, {}, "encoders.weight must be "),
        ({f"decoder_module.decoders.{p}.weight": torch.zeros(F, D) for p in PLACES["none"]}, {}, "weight must be "),
        ({"encoder_module.encoders.1.weight": torch.zeros(D, F)}, {}, "do not fit together"),
        ({"theta_manager.log_threshold": torch.zeros(F, L)}, {}, "log_threshold must be "),
        ({"decoder_module.skip_weights.0": torch.zeros(D, D)}, {}, "skip_weights.0'. are unknown"),
    ],
)
def test_what_crosslayer_coding_files_cannot_say_is_refused(coding, changed, changes, sentence):
    folder, _ = coding(changed, **changes)
    with pytest.raises(ValueError, match=sentence):
        load(folder)


def test_statistics_and_checkpoints_of_crosslayer_coding_must_be_the_ones(coding, statistics):
    statistics["1"]["targets"]["std"].pop()
    folder, _ = coding(statistics=statistics)
    with pytest.raises(ValueError, match="has not std of the targets of every layer"):
        load(folder)
    coding(name="clt_checkpoint_latest.safetensors")
    with pytest.raises(ValueError, match="leave one of them beside cfg.json"):
        load(folder)


# llamascopium ---------------------------------------------------------------------------------------------------------

NORM = "dataset_average_activation_norm.blocks"


@pytest.fixture
def scope(tmp_path, draw):
    """scope(tensors changed or, where None, left out, **configuration) -> a folder, and its tensors"""
    tensors = {
        "W_E": draw(L, D, F),
        "b_E": draw(L, F),
        **{f"W_D.{m}": draw(m + 1, F, D) for m in range(L)},
        **{f"b_D.{m}": draw(D) for m in range(L)},
        "activation_function.log_jumprelu_threshold": draw(L, F),
        **{f"{NORM}.{l}.ln2.hook_normalized": draw(1)[0].exp() * 5 for l in range(L)},
        **{f"{NORM}.{l}.hook_mlp_out": draw(1)[0].exp() * 5 for l in range(L)},
    }

    def make(changed=None, **changes):
        config = {
            "sae_type": "clt",
            "d_model": D,
            "expansion_factor": F / D,
            "act_fn": "jumprelu",
            "norm_activation": "dataset-wise",
            "sparsity_include_decoder_norm": True,
            "hook_points_in": [f"blocks.{l}.ln2.hook_normalized" for l in range(L)],
            "hook_points_out": [f"blocks.{l}.hook_mlp_out" for l in range(L)],
        } | changes
        own = {name: tensor for name, tensor in (tensors | (changed or {})).items() if tensor is not None}
        save_file({name: tensor.contiguous() for name, tensor in own.items()}, tmp_path / "sae_weights.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path, own

    return make


def of_scope(t, x, scaled, with_norm):
    z = []
    for l in range(L):
        own = x[l] * D**0.5 / t[f"{NORM}.{l}.ln2.hook_normalized"] if scaled else x[l]
        written = torch.cat([t[f"W_D.{m}"][l] for m in range(l, L)], 1).norm(dim=1) if with_norm else torch.ones(())
        h = (own @ t["W_E"][l] + t["b_E"][l]) * written
        z.append(h * (h > t["activation_function.log_jumprelu_threshold"][l].exp()) / written)
    y = [sum(z[l] @ t[f"W_D.{m}"][l] for l in range(m + 1)) + t[f"b_D.{m}"] for m in range(L)]
    return [own * t[f"{NORM}.{m}.hook_mlp_out"] / D**0.5 if scaled else own for m, own in enumerate(y)]


@pytest.mark.parametrize("with_norm", [False, True], ids=["thresholds", "thresholds of norms"])
@pytest.mark.parametrize("scaled", [False, True], ids=["inference", "dataset-wise"])
def test_llamascopium_runs_as_there(scope, x, scaled, with_norm):
    folder, tensors = scope(
        norm_activation="dataset-wise" if scaled else "inference", sparsity_include_decoder_norm=with_norm
    )
    clt = load(folder)
    agrees(clt, of_scope(tensors, x, scaled, with_norm), x)
    assert (clt.hook_in(1), clt.hook_out(1)) == ("ln2.hook_normalized", "hook_mlp_out")


@pytest.mark.parametrize(
    ("changed", "changes", "sentence"),
    [
        ({}, {"sae_type": "sae"}, "sae_type 'sae' is not supported"),
        ({}, {"act_fn": "batchtopk"}, "act_fn 'batchtopk' is not supported"),
        ({}, {"norm_activation": "token-wise"}, "norm_activation 'token-wise' is not supported"),
        ({}, {"expansion_factor": 2}, f"the configuration says F={2 * D}, the tensors have {F}"),
        ({}, {"hook_points_in": ["blocks.1.a", "blocks.2.a", "blocks.3.a"]}, "one place in every block from 0 on"),
        ({f"{NORM}.1.hook_mlp_out": None}, {}, "are missing"),
        ({f"{NORM}.1.hook_mlp_out": torch.zeros(())}, {}, "must be one positive number each"),
        ({"activation_function.log_jumprelu_threshold": None}, {}, "has no thresholds"),
        ({"W_E": torch.zeros(L, F, D)}, {}, "W_E must be "),
        ({f"W_D.{m}": torch.zeros(m + 1, D, F) for m in range(L)}, {}, "W_D must be "),
        ({"W_D.0": torch.zeros(3, F, D), "W_D.2": torch.zeros(1, F, D)}, {}, "up to its target i, got {'W_D.0'"),
    ],
)
def test_what_llamascopium_files_cannot_say_is_refused(scope, changed, changes, sentence):
    folder, _ = scope(changed, **changes)
    with pytest.raises(ValueError, match=sentence):
        load(folder)
