"""crosslayer-coding's cross-layer transcoders (`cfg.json` and one safetensors file), read only.

    encoder_module.encoders.{l}.weight (F, d_in), .bias_param (F)
    decoder_module.decoders.{l}->{m}.weight (d_out, F), .bias_param (d_out); with tied decoders ...decoders.{l}
    log_threshold (L, F), also as theta_manager.log_threshold

Biases of a target layer add up; with decoders tied per source a bias counts at every target of its source. A feature
that equals its threshold is active. With normalization_method mean_std the model was trained on (x - mean) / (std +
1e-6) of inputs and targets, whose statistics `norm_stats.json` holds; they are folded into the weights.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pullback.transcoders.activations import ReLU
from pullback.transcoders.crosslayer import DECODER_TYINGS, CrossLayerTranscoder
from pullback.transcoders.formats.assemble import assemble, gather, kept_dtype, sums_by_target
from pullback.transcoders.formats.build import Options
from pullback.transcoders.formats.crosslayer import must_be_whole
from pullback.transcoders.formats.files import read_json, read_safetensors
from pullback.transcoders.formats.tables import CROSSLAYER_CODING, from_table

CONFIG, STATISTICS = "cfg.json", "norm_stats.json"
WEIGHTS = ("model.safetensors", "clt_checkpoint_latest.safetensors")
ENCODERS, DECODERS, THRESHOLD = "encoder_module.encoders", "decoder_module.decoders", "log_threshold"
MEAN_STD = ("mean_std", "auto", "estimated_mean_std")  # the last two are its older names
ADDED_TO_STD = 1e-6
TEMPLATE = re.compile(r"blocks\.\{\w*\}\.(.+)")


def load(path: str | os.PathLike[str], options: Options) -> CrossLayerTranscoder:
    """Read a folder; see `load_transcoders`."""
    folder = Path(path)
    must_be_whole(folder, options)
    config, file = read_json(folder / CONFIG), _weights_in(folder)
    _refuse(config, folder / CONFIG, options)
    tying, n_layers = config.get("decoder_tying", "none"), config["num_layers"]
    pairs = _pairs(tying, n_layers)
    weights = _read(file, config, tying, pairs)
    has_thresholds = config["activation_fn"] == "jumprelu"
    if has_thresholds != ("theta" in weights):
        raise ValueError(
            f"{file}: cfg.json says activation_fn {config['activation_fn']!r}, but the file "
            f"{'lacks' if has_thresholds else 'has'} {THRESHOLD}; the two belong to different transcoders"
        )
    if has_thresholds:
        weights["theta"] = _just_below(weights["theta"], kept_dtype(weights["W_enc"], options))
    weights["b_dec"] = sums_by_target(weights["b_dec"], pairs[1], n_layers)
    if tying == "per_source":
        weights["b_dec"] = weights["b_dec"].cumsum(0)
    if config["normalization_method"] in MEAN_STD:
        weights |= _statistics(folder, weights)
        if tying == "per_source":  # what it writes is scaled differently at every target
            tying, pairs = "none", _pairs("none", n_layers)
            weights["W_dec"] = weights["W_dec"][pairs[0]]
    return assemble(
        weights,
        pairs,
        tying=tying,
        activation=ReLU() if config["activation_fn"] == "relu" else None,
        hooks=_hooks(config, folder / CONFIG, options),
        options=options,
        source=file,
    )


def _weights_in(folder: Path) -> Path:
    found = sorted(folder.glob("*.safetensors"))
    named = [file for file in found if file.name in WEIGHTS] or found
    if not named:
        raise FileNotFoundError(f"no {' or '.join(WEIGHTS)} in {folder}; copy it again")
    if len(named) > 1:
        raise ValueError(f"{folder} has {', '.join(file.name for file in named)}; leave one of them beside {CONFIG}")
    return named[0]


def _refuse(config: dict[str, Any], file: Path, options: Options) -> None:
    """Raises ValueError for settings that are missing, or that no `CrossLayerTranscoder` is equal to."""
    missing = {"num_layers", "num_features", "d_model", "activation_fn", "normalization_method"} - set(config)
    if missing:
        raise ValueError(f"{file} does not say {', '.join(sorted(missing))}; is it of crosslayer-coding?")
    for key in ("skip_connection", "enable_feature_offset", "enable_feature_scale", "sqrt_d_model_normalize"):
        if config.get(key):
            raise ValueError(f"{file}: {key}={config[key]!r} is not supported")
    if config.get("decoder_tying", "none") not in DECODER_TYINGS:
        raise ValueError(f"{file}: decoder_tying {config['decoder_tying']!r} is not supported")
    if config["activation_fn"] not in ("jumprelu", "relu") and options.activation is None:
        raise ValueError(
            f"{file}: activation_fn {config['activation_fn']!r} ranks the features of all layers together, which is "
            "not supported; convert it to jumprelu with crosslayer-coding, or pass activation="
        )
    if config["normalization_method"] not in ("none", *MEAN_STD):
        raise ValueError(f"{file}: normalization_method {config['normalization_method']!r} is not supported")


def _pairs(tying: str, n_layers: int) -> tuple[Tensor, Tensor]:
    """Source and target layer of every decoder."""
    layers = torch.arange(n_layers)
    sources, targets = (layers, layers) if tying != "none" else torch.triu_indices(n_layers, n_layers)
    return sources, targets


def _read(file: Path, config: dict[str, Any], tying: str, pairs: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    tensors = {name.removeprefix("theta_manager."): tensor for name, tensor in read_safetensors(file).items()}
    layers = [str(layer) for layer in range(config["num_layers"])]
    both = zip(*(place.tolist() for place in pairs), strict=True)
    decoders = layers if tying != "none" else [f"{source}->{target}" for source, target in both]
    for module, places in ((ENCODERS, layers), (DECODERS, decoders)):
        for name in ("weight", "bias_param"):
            tensors[f"{module}.{name}"] = gather(tensors, [f"{module}.{place}.{name}" for place in places], file)
    declared = {"L": config["num_layers"], "F": config["num_features"], "d_in": config["d_model"]}
    return from_table(tensors, CROSSLAYER_CODING, file, declared)


def _just_below(log_threshold: Tensor, dtype: torch.dtype) -> Tensor:
    """Thresholds of h * (h > theta) that equal h * (h >= exp(log_threshold))."""
    threshold = log_threshold.to(torch.promote_types(dtype, torch.float32)).exp()
    return torch.nextafter(threshold, torch.zeros_like(threshold))


def _statistics(folder: Path, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """mean_in, std_in, mean_out, std_out, Float[Tensor, 'L d'], of `norm_stats.json`."""
    file = folder / STATISTICS
    if not file.is_file():
        raise ValueError(
            f"{folder} was trained on normalised activations, and {STATISTICS}, which says how, is not in it; copy it "
            "from the activations it was trained on"
        )
    stated, found = read_json(file), {}
    widths = {"in": weights["W_enc"].shape[-1], "out": weights["W_dec"].shape[-1]}
    for side, key in (("in", "inputs"), ("out", "targets")):
        for name in ("mean", "std"):
            try:
                rows = [stated[str(layer)][key][name] for layer in range(len(weights["W_enc"]))]
                found[f"{name}_{side}"] = torch.tensor(rows, dtype=torch.float64)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{file} has not {name} of the {key} of every layer: {error}") from error
            if found[f"{name}_{side}"].shape != (len(rows), widths[side]):
                raise ValueError(f"{file}: {name} of {key} must be {widths[side]} numbers a layer")
        found[f"std_{side}"] += ADDED_TO_STD
    return found


def _hooks(config: dict[str, Any], file: Path, options: Options) -> tuple[str, str]:
    hooks = []
    for side, given in (("input", options.hook_in), ("output", options.hook_out)):
        key = f"tl_{side}_template"
        match = TEMPLATE.fullmatch(str(config.get(key) or ""))
        if given is None and match is None:
            argument = "hook_in" if side == "input" else "hook_out"
            raise ValueError(f"{file}: {key} is {config.get(key)!r}, which names no place in a block; pass {argument}=")
        hooks.append(given or (match[1] if match is not None else ""))
    return hooks[0], hooks[1]
