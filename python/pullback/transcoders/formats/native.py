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
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pullback._util.atomic import atomic_directory, atomic_save, previous_directory
from pullback._util.version import version
from pullback.transcoders.activations import Activation, BatchTopK, JumpReLU, ReLU, TopK
from pullback.transcoders.reading import ModelReading
from pullback.transcoders.sets import TranscoderSet
from pullback.transcoders.transcoder import Transcoder

CONFIG = "config.yaml"
THRESHOLD = "activation_function.threshold"
REQUIRED = ("W_enc", "b_enc", "W_dec", "b_dec")
LAYER_FILE = re.compile(r"layer_(\d+)\.safetensors")
SETTINGS = ("feature_input_hook", "feature_output_hook", "activation", "k", "relu", "threshold")


def save(sets: TranscoderSet, path: str | os.PathLike[str]) -> None:
    """Write a set to directory `path`; see `TranscoderSet.save`."""
    with atomic_directory(path, manifest=CONFIG, owned=_is_ours) as staging:
        for layer, transcoder in sets.items():
            try:
                save_file(_tensors(transcoder), staging / _file_name(layer))
            except SafetensorError as error:
                # What a full disk looks like from there; callers expect the file system's own kind of error.
                raise OSError(
                    f"could not write {_file_name(layer)} for {path}: {error}; what was there is intact"
                ) from error
        atomic_save(staging / CONFIG, yaml.safe_dump(_config(sets), sort_keys=False, allow_unicode=True))
        for layer in sets:  # safetensors lets only the owner read; whoever may read the one may read the other
            shutil.copymode(staging / CONFIG, staging / _file_name(layer))


def load(
    path: str | os.PathLike[str], *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> TranscoderSet:
    """Read a set from directory `path`; see `load_transcoders`."""
    directory = Path(path)
    config = _read_config(directory)
    layers = _layers(directory, config)
    readings = config.get("readings") or {}
    transcoders = {}
    for layer in layers:
        settings = {key: config.get(key) for key in SETTINGS} | (config.get("overrides") or {}).get(layer, {})
        reading = ModelReading.from_dict(readings[layer]) if readings.get(layer) else None
        transcoders[layer] = _read_layer(directory / _file_name(layer), settings, reading, dtype, device)
    return TranscoderSet(transcoders)


def _file_name(layer: int) -> str:
    return f"layer_{layer}.safetensors"


def _is_ours(name: str) -> bool:
    return name == CONFIG or LAYER_FILE.fullmatch(name) is not None


# Writing


def _tensors(transcoder: Transcoder) -> dict[str, Tensor]:
    tensors = {name: parameter.detach().contiguous() for name, parameter in transcoder.named_parameters()}
    if isinstance(transcoder.activation, JumpReLU):
        theta = torch.as_tensor(transcoder.activation.theta).to(transcoder.W_enc)
        tensors[THRESHOLD] = theta.expand(transcoder.d_sae).contiguous()
    return tensors


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


def _read_config(directory: Path) -> dict[str, Any]:
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
            f"{', '.join(map(_file_name, missing))} is missing; copy the set again"
        )
    if extra:
        raise ValueError(
            f"{directory}: {', '.join(map(_file_name, extra))} is not among the layers {sorted(declared)} of {CONFIG}; "
            "remove what belongs to another set, or add the layer to the configuration"
        )
    return declared


def _read_layer(
    file: Path,
    settings: dict[str, Any],
    reading: ModelReading | None,
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> Transcoder:
    tensors = _read_tensors(file)
    threshold = tensors.pop(THRESHOLD, None)
    missing, unknown = sorted(set(REQUIRED) - set(tensors)), sorted(set(tensors) - {*REQUIRED, "W_skip"})
    if missing or unknown:
        raise ValueError(
            f"{file}: tensors {missing} are missing and {unknown} are unknown; a layer holds {', '.join(REQUIRED)} "
            f"and optionally W_skip, {THRESHOLD}. Is this another format?"
        )
    if dtype is None:
        stored = tensors["W_enc"].dtype
        dtype = torch.float32 if stored in (torch.bfloat16, torch.float16) else stored
    try:
        # Copies, since tensors inside the file's buffer are not aligned, and a GEMM may round differently on unaligned
        # rows.
        return Transcoder(
            **{name: tensor.to(device=device, dtype=dtype, copy=True) for name, tensor in tensors.items()},
            activation=_activation(settings, None if threshold is None else threshold.to(device=device, dtype=dtype)),
            hook_in=settings["feature_input_hook"] or "mlp.hook_in",
            hook_out=settings["feature_output_hook"] or "hook_mlp_out",
            reading=reading,
        )
    except ValueError as error:
        raise ValueError(
            f"{file}: {error}. The file does not fit {CONFIG}, or is from another format; convert it "
            "or save the set again"
        ) from error


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt", device="cpu") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  (no dict: it has no iterator)
    except (SafetensorError, OSError) as error:
        size = file.stat().st_size
        raise ValueError(f"{file} ({size} bytes) is damaged or cut off: {error}; copy or save the set again") from error


def _activation(settings: dict[str, Any], threshold: Tensor | None) -> Activation:
    name, k = settings["activation"], settings["k"]
    if name is None:
        name = "relu" if threshold is None else "jumprelu"
    if name in ("topk", "batch_topk") and k is None:
        raise ValueError(f"activation {name} needs k in {CONFIG}")
    if name == "topk":
        return TopK(k, relu=bool(settings["relu"]))
    if name == "batch_topk":
        return BatchTopK(k, settings["threshold"])
    if name == "jumprelu":
        if threshold is None:
            raise ValueError(f"activation jumprelu needs the tensor {THRESHOLD}")
        return JumpReLU(threshold)
    if name == "relu":
        return ReLU()
    raise ValueError(f"activation {name!r} is unknown; it must be topk, batch_topk, jumprelu or relu")
