"""The native format: circuit-tracer's per-layer layout with a configuration that leaves nothing to guess.

    config.yaml             hooks, activation, layers, how the model was read
    layer_{i}.safetensors   W_enc (F, d_in), b_enc (F), W_dec (F, d_out), b_dec (d_out)
                            optional W_skip (d_out, d_in), activation_function.threshold (F)

Configuration keys: `model_name`, `model_kind: transcoder_set`, `feature_input_hook`, `feature_output_hook`,
`activation` (topk, batch_topk, jumprelu, relu), `k`, `relu` (topk), `threshold` (batch_topk), `layers`, `readings`
{layer: ModelReading}, `pullback_version`; where layers differ in hooks or activation, `overrides` {layer: {key:
value}}. A configuration without `activation`, as circuit-tracer reads it, means JumpReLU where the file has thresholds
and ReLU where it has none; `topk` without `relu` keeps negative values, as there.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from pullback._util.atomic import atomic_directory, atomic_save, previous_directory
from pullback._util.version import version
from pullback.transcoders.activations import Activation, BatchTopK, ReLU, TopK
from pullback.transcoders.formats.build import Options, build
from pullback.transcoders.formats.files import read_safetensors, write_safetensors
from pullback.transcoders.formats.tables import CIRCUIT_TRACER, from_table, to_table
from pullback.transcoders.reading import ModelReading
from pullback.transcoders.sets import TranscoderSet
from pullback.transcoders.transcoder import Transcoder

CONFIG = "config.yaml"
THRESHOLD = "activation_function.threshold"
LAYER_FILE = re.compile(r"layer_(\d+)\.safetensors")
SETTINGS = ("feature_input_hook", "feature_output_hook", "activation", "k", "relu", "threshold")


def save(sets: TranscoderSet, path: str | os.PathLike[str]) -> None:
    """Write a set to directory `path`; see `TranscoderSet.save`."""
    with atomic_directory(path, manifest=CONFIG, owned=is_ours) as staging:
        atomic_save(staging / CONFIG, yaml.safe_dump(_config(sets), sort_keys=False, allow_unicode=True))
        for layer, transcoder in sets.items():
            write_safetensors(to_table(transcoder, CIRCUIT_TRACER), staging / file_name(layer), like=staging / CONFIG)


def load(path: str | os.PathLike[str], options: Options) -> TranscoderSet:
    """Read a set from directory `path`, or one layer's file in it; see `load_transcoders`."""
    directory = Path(path)
    match = LAYER_FILE.fullmatch(directory.name)
    if match:  # one file of a set, the rest of which need not be here
        directory = directory.parent
        config, layers = read_config(directory), [int(match[1])]
    else:
        config = read_config(directory)
        layers = _layers(directory, config)
    if options.layer is not None:
        layers = [layer for layer in layers if layer == options.layer]
        if not layers:
            raise ValueError(f"{directory} has no layer {options.layer}")
    readings = config.get("readings") or {}
    transcoders = {}
    for layer in layers:
        settings = {key: config.get(key) for key in SETTINGS} | (config.get("overrides") or {}).get(layer, {})
        reading = ModelReading.from_dict(readings[layer]) if readings.get(layer) else None
        transcoders[layer] = read_layer(directory / file_name(layer), settings, reading, options)
    return TranscoderSet(transcoders)


def file_name(layer: int) -> str:
    return f"layer_{layer}.safetensors"


def is_ours(name: str) -> bool:
    return name == CONFIG or LAYER_FILE.fullmatch(name) is not None


# Writing


def _config(sets: TranscoderSet) -> dict[str, Any]:
    settings = {layer: _settings(transcoder) for layer, transcoder in sets.items()}
    common = settings[sets.layers[0]]
    overrides = {
        layer: {key: own.get(key) for key in SETTINGS if own.get(key) != common.get(key)}
        for layer, own in settings.items()
        if own != common
    }
    readings = {
        layer: transcoder.reading.to_dict() for layer, transcoder in sets.items() if transcoder.reading is not None
    }
    config = {
        "model_name": next((reading["model_name"] for reading in readings.values()), "unknown"),
        "model_kind": "transcoder_set",
        **common,
        "layers": sets.layers,
        "pullback_version": version(),
    }
    if overrides:
        config["overrides"] = overrides
    if readings:
        config["readings"] = readings
    return config


def _settings(transcoder: Transcoder) -> dict[str, Any]:
    activation = transcoder.activation
    settings: dict[str, Any] = {
        "feature_input_hook": transcoder.hook_in,
        "feature_output_hook": transcoder.hook_out,
        "activation": activation.name,
    }
    if isinstance(activation, TopK | BatchTopK):
        settings["k"] = activation.k
    if isinstance(activation, TopK):
        settings["relu"] = activation.relu
    if isinstance(activation, BatchTopK):
        settings["threshold"] = activation.threshold
    return settings


# Reading


def read_config(directory: Path) -> dict[str, Any]:
    file = directory / CONFIG
    if not file.is_file():
        previous = previous_directory(directory)
        if not directory.exists() and previous.is_dir():
            raise FileNotFoundError(
                f"{directory} is missing because a save was cut off there; the set before it is complete "
                f"in {previous}: rename it back"
            )
        raise FileNotFoundError(
            f"no {CONFIG} in {directory}; a transcoder set is a directory with {CONFIG} and layer_*.safetensors"
        )
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
        raise ValueError(
            f"{file} is not readable YAML ({problem}); the file is damaged, save or copy the set again"
        ) from error
    if not isinstance(config, dict):
        raise ValueError(
            f"{file} must hold keys and values, got {type(config).__name__}; the file is damaged, save "
            "or copy the set again"
        )
    kind = config.get("model_kind", "transcoder_set")
    if kind != "transcoder_set":
        raise ValueError(
            f"{file}: model_kind is {kind!r}, but this reader knows per-layer sets only (model_kind: transcoder_set)"
        )
    return config


def _layers(directory: Path, config: dict[str, Any]) -> list[int]:
    present = sorted(int(match[1]) for name in os.listdir(directory) if (match := LAYER_FILE.fullmatch(name)))
    declared = config.get("layers")
    if declared is None:
        declared = present
    if not isinstance(declared, list) or not all(isinstance(layer, int) for layer in declared) or not declared:
        raise ValueError(f"{directory / CONFIG}: layers must be a non-empty list of layer numbers, got {declared!r}")
    missing, extra = sorted(set(declared) - set(present)), sorted(set(present) - set(declared))
    if missing:
        raise ValueError(
            f"{directory}: {CONFIG} lists layers {sorted(declared)}, but "
            f"{', '.join(map(file_name, missing))} is missing; copy the set again"
        )
    if extra:
        raise ValueError(
            f"{directory}: {', '.join(map(file_name, extra))} is not among the layers {sorted(declared)} of {CONFIG}; "
            "remove what belongs to another set, or add the layer to the configuration"
        )
    return declared


def read_layer(file: Path, settings: dict[str, Any], reading: ModelReading | None, options: Options) -> Transcoder:
    try:
        weights = from_table(read_safetensors(file), CIRCUIT_TRACER, file)
        return build(
            weights,
            activation=options.activation or _activation(settings, "theta" in weights),
            hook_in=settings["feature_input_hook"] or "mlp.hook_in",
            hook_out=settings["feature_output_hook"] or "hook_mlp_out",
            options=options,
            source=file,
            reading=reading,
        )
    except ValueError as error:
        if str(file) in str(error):
            raise
        raise ValueError(f"{file}: {error}") from error


def _activation(settings: dict[str, Any], has_thresholds: bool) -> Activation | None:
    """The rule, or None for what the thresholds say: a JumpReLU."""
    name, k = settings["activation"], settings["k"]
    if name is None:
        name = "jumprelu" if has_thresholds else "relu"
    if name in ("topk", "batch_topk") and k is None:
        raise ValueError(f"activation {name} needs k in {CONFIG}")
    if name == "topk":
        return TopK(k, relu=bool(settings["relu"]))
    if name == "batch_topk":
        return BatchTopK(k, settings["threshold"])
    if name == "jumprelu":
        if not has_thresholds:
            raise ValueError(f"activation jumprelu needs the tensor {THRESHOLD}")
        return None
    if name == "relu":
        return ReLU()
    raise ValueError(f"activation {name!r} is unknown; it must be topk, batch_topk, jumprelu or relu")
