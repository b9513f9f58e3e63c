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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from pullback._util.atomic import atomic_directory, atomic_save, previous_directory
from pullback._util.version import version
from pullback.transcoders.activations import Activation, BatchTopK, ReLU, TopK
from pullback.transcoders.features import FeatureLayer
from pullback.transcoders.formats.build import Layer, Options, build_layer
from pullback.transcoders.formats.files import write_safetensors
from pullback.transcoders.formats.tables import CIRCUIT_TRACER, from_table, to_table
from pullback.transcoders.layered import LayeredDictionary
from pullback.transcoders.reading import ModelReading
from pullback.transcoders.sets import TranscoderSet
from pullback.transcoders.transcoder import Transcoder

CONFIG = "config.yaml"
THRESHOLD = "activation_function.threshold"
LAYER_FILE = re.compile(r"layer_(\d+)\.safetensors")
OWNED = re.compile(r"(layer|W_enc|W_dec)_\d+\.safetensors")  # of per-layer and cross-layer sets
SETTINGS = ("feature_input_hook", "feature_output_hook", "activation", "k", "relu", "threshold")


def save(sets: TranscoderSet, path: str | os.PathLike[str]) -> None:
    """Write a set to directory `path`; see `TranscoderSet.save`."""
    with atomic_directory(path, manifest=CONFIG, owned=is_ours) as staging:
        write_config(staging, config_of(sets, "transcoder_set"))
        for layer, transcoder in sets.items():
            write_layer(staging, layer, transcoder)


def load(path: str | os.PathLike[str], options: Options) -> TranscoderSet:
    """Read a set from directory `path`, or one layer's file in it; see `load_transcoders`."""
    directory = Path(path)
    match = LAYER_FILE.fullmatch(directory.name)
    if match:  # one file of a set, the rest of which need not be here
        directory = directory.parent
        config, layers = read_config(directory), [int(match[1])]
    else:
        config = read_config(directory)
        layers = layers_in(directory, config, LAYER_FILE, file_name)
    if options.layer is not None:
        layers = [layer for layer in layers if layer == options.layer]
        if not layers:
            raise ValueError(f"{directory} has no layer {options.layer}")
    return TranscoderSet(
        {layer: read_layer(directory / file_name(layer), *said_of(config, layer), options) for layer in layers}
    )


def file_name(layer: int) -> str:
    return f"layer_{layer}.safetensors"


def is_ours(name: str) -> bool:
    return name == CONFIG or OWNED.fullmatch(name) is not None


# Writing


def config_of(sets: LayeredDictionary, kind: str) -> dict[str, Any]:
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
        "model_kind": kind,
        **common,
        "layers": sets.layers,
        "pullback_version": version(),
    }
    if overrides:
        config["overrides"] = overrides
    if readings:
        config["readings"] = readings
    return config


def write_config(directory: Path, config: dict[str, Any]) -> None:
    atomic_save(directory / CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def write_layer(directory: Path, layer: int, transcoder: Transcoder) -> None:
    write_safetensors(to_table(transcoder, CIRCUIT_TRACER), directory / file_name(layer), like=directory / CONFIG)


def _settings(transcoder: FeatureLayer) -> dict[str, Any]:
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


def read_config(directory: Path, kind: str = "transcoder_set") -> dict[str, Any]:
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
    found = config.get("model_kind", kind)
    if found != kind:
        raise ValueError(
            f"{file}: model_kind is {found!r}, but the files beside it are those of per-layer sets only or of "
            f"cross-layer transcoders only (model_kind: {kind}); copy the set again"
        )
    return config


def said_of(config: dict[str, Any], layer: int) -> tuple[dict[str, Any], ModelReading | None]:
    """The settings of one layer, and how the model was read there."""
    settings = {key: config.get(key) for key in SETTINGS} | (config.get("overrides") or {}).get(layer, {})
    reading = (config.get("readings") or {}).get(layer)
    return settings, ModelReading.from_dict(reading) if reading else None


def layers_in(
    directory: Path, config: dict[str, Any], pattern: re.Pattern[str], file_name: Callable[[int], str]
) -> list[int]:
    """The layers that the configuration lists or, if it does not, that have files; refused where the two differ."""
    present = sorted(int(match[1]) for name in os.listdir(directory) if (match := pattern.fullmatch(name)))
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
    weights = from_table(options.read(file), CIRCUIT_TRACER, file)
    return made(Transcoder, weights, file, settings, reading, options)


def made(
    layer_type: type[Layer],
    weights: dict[str, Tensor],
    file: Path,
    settings: dict[str, Any],
    reading: ModelReading | None,
    options: Options,
) -> Layer:
    """A layer of these weights under these settings. Raises ValueError that names the file."""
    try:
        return build_layer(
            layer_type,
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
