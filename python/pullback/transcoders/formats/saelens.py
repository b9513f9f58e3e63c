"""SAELens: a folder a dictionary, or a folder of such folders.

    cfg.json                  architecture, d_in, d_sae, d_out, k, ..., metadata {model_name, hook_name, hook_name_out}
    sae_weights.safetensors   W_enc (d_in, F), b_enc (F), W_dec (F, d_out), b_dec (d_out), W_skip (d_out, d_in),
                              threshold (F)

Transcoders (`transcoder`, `skip_transcoder`, `jumprelu_transcoder`, `jumprelu_skip_transcoder`) and the autoencoders
that are exactly a `Transcoder`: `standard`, `topk`, `jumprelu`. There is no TopK transcoder there: a TopK set is
written with thresholds (see `calibrate`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pullback._util.atomic import atomic_directory, atomic_save
from pullback._util.version import version
from pullback.transcoders.activations import Activation, JumpReLU, ReLU, TopK
from pullback.transcoders.formats.build import Options, build, in_block, one_per_layer, relu_then_threshold
from pullback.transcoders.formats.files import folders_with, read_json, write_safetensors
from pullback.transcoders.formats.tables import SAELENS, from_table, to_table
from pullback.transcoders.reading import ModelReading
from pullback.transcoders.sets import TranscoderSet
from pullback.transcoders.transcoder import Transcoder

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
# {architecture: (is a transcoder, has thresholds, has a skip path)}
ARCHITECTURES = {
    "transcoder": (True, False, False),
    "skip_transcoder": (True, False, True),
    "jumprelu_transcoder": (True, True, False),
    "jumprelu_skip_transcoder": (True, True, True),
    "standard": (False, False, False),
    "topk": (False, False, False),
    "jumprelu": (False, True, False),
}
LAYOUT_VERSION = "6.54.12"  # of SAELens; without one it takes the file for an older layout and rewrites the settings


def load(path: str | os.PathLike[str], options: Options) -> TranscoderSet:
    """Read one dictionary or a folder of them; see `load_transcoders`."""
    directory = Path(path)
    found = []
    for folder in folders_with(WEIGHTS, directory, "SAELens"):
        config = _settled(read_json(folder / CONFIG), folder)
        layer, hook_in, hook_out = _hooks(config, folder, options)
        if options.layer in (None, layer):
            found.append((layer, _Found(folder, config, hook_in, hook_out)))
    if not found:
        raise ValueError(f"{directory} has no layer {options.layer}")
    return TranscoderSet({l: _read(one, options) for l, one in one_per_layer(found, directory).items()})


class _Found:
    def __init__(self, folder: Path, config: dict[str, Any], hook_in: str, hook_out: str) -> None:
        self.folder, self.config, self.hook_in, self.hook_out = folder, config, hook_in, hook_out

    def __repr__(self) -> str:
        return str(self.folder)


def _settled(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One spelling for the settings of all versions: before 6.0 the metadata lay beside the rest."""
    metadata = config.get("metadata")
    settled = {**config, **metadata} if isinstance(metadata, dict) else dict(config)
    for old, new in (("hook_point", "hook_name"), ("activation_fn_str", "activation_fn")):
        if old in settled:
            settled.setdefault(new, settled[old])
    settled.setdefault("architecture", "standard")
    function = settled.get("activation_fn", "relu")
    if function == "topk":
        settled["architecture"] = "topk"
        settled["k"] = (settled.get("activation_fn_kwargs") or {}).get("k", settled.get("k"))
    elif function != "relu":
        raise ValueError(f"{folder / CONFIG}: activation function {function!r} is not supported; relu and topk are")
    if settled["architecture"] not in ARCHITECTURES:
        raise ValueError(
            f"{folder / CONFIG}: architecture {settled['architecture']!r} is not a transcoder of ours; it must be one "
            f"of {', '.join(ARCHITECTURES)}"
        )
    for setting, harmless in (
        ("normalize_activations", ("none", False, None)),
        ("reshape_activations", ("none", None)),
        ("finetuning_scaling_factor", (False, None)),
    ):
        if settled.get(setting) not in harmless:
            raise ValueError(
                f"{folder / CONFIG}: {setting} is {settled[setting]!r}, which is not in the weights; fold it into "
                f"them with SAELens and save again, so that it says {harmless[0]!r}"
            )
    return settled


def _hooks(config: dict[str, Any], folder: Path, options: Options) -> tuple[int, str, str]:
    given = options.layer, options.hook_in, options.hook_out
    if all(value is not None for value in given):
        return given  # type: ignore[return-value]
    name, out = config.get("hook_name"), config.get("hook_name_out")
    if not name:
        raise ValueError(f"{folder / CONFIG} names no hook; pass layer=, hook_in= and hook_out=")
    layer, hook_in = in_block(name, folder / CONFIG)
    if not ARCHITECTURES[config["architecture"]][0]:
        return layer, hook_in, hook_in
    if not out:
        if options.hook_out is None:
            raise ValueError(f"{folder / CONFIG} names no output hook (hook_name_out); pass hook_out=")
        return layer, hook_in, options.hook_out
    layer_out, hook_out = in_block(out, folder / CONFIG)
    if layer_out != layer:
        raise ValueError(f"{folder / CONFIG}: reads layer {layer} and writes layer {layer_out}; a transcoder has one")
    return layer, hook_in, hook_out


def _read(found: _Found, options: Options) -> Transcoder:
    folder, config = found.folder, found.config
    is_transcoder, has_theta, has_skip = ARCHITECTURES[config["architecture"]]
    declared = {"F": config.get("d_sae"), "d_in": config.get("d_in")}
    declared["d_out"] = config.get("d_out") if is_transcoder else declared["d_in"]
    weights = from_table(options.read(folder / WEIGHTS), SAELENS, folder / WEIGHTS, declared)
    for name, expected in (("theta", has_theta), ("W_skip", has_skip)):
        if (name in weights) != expected:
            there = "lacks" if expected else "has"
            raise ValueError(
                f"{folder}: architecture {config['architecture']!r}, but {WEIGHTS} {there} {SAELENS.tensors[name][0]}"
            )
    if config.get("apply_b_dec_to_input", not is_transcoder):
        if is_transcoder:
            raise ValueError(f"{folder / CONFIG}: apply_b_dec_to_input is true, which SAELens refuses for transcoders")
        weights["b_in"] = weights["b_dec"]
    activation: Activation | None = None if has_theta else ReLU()
    if has_theta:
        weights["theta"] = relu_then_threshold(weights["theta"])
    if config["architecture"] == "topk":
        activation = TopK(config.get("k", 100))
        if config.get("rescale_acts_by_decoder_norm"):
            # Chosen by h * |row of W_dec| and divided by it again: the norm moves from the decoder to the encoder.
            norms = weights["W_dec"].double().norm(dim=1)
            weights["W_enc"] = weights["W_enc"].double() * norms[:, None]
            weights["b_enc"] = weights["b_enc"].double() * norms
            weights["W_dec"] = weights["W_dec"].double() / norms[:, None]
            # Products of 16-bit numbers do not fit into 16 bits.
            kept = torch.promote_types(weights["b_dec"].dtype, torch.float32)
            weights = {name: weight.to(kept) for name, weight in weights.items()}
    ours = config.get("pullback") or {}
    return build(
        weights,
        activation=activation,
        hook_in=found.hook_in,
        hook_out=found.hook_out,
        options=options,
        source=folder / WEIGHTS,
        reading=ModelReading.from_dict(ours["reading"]) if ours.get("reading") else None,
    )


# Writing


def save(sets: TranscoderSet, path: str | os.PathLike[str], *, metadata: Mapping[str, Any] | None = None) -> None:
    """Write one folder a layer, named by its input hook; see `TranscoderSet.save`.

    Args:
        metadata: entries of the configuration's `metadata` that a set does not know, like `context_size`, `prepend_bos`
            or `neuronpedia_id`; they overrule what is written otherwise.
    """
    configs = {layer: _config(layer, transcoder, metadata or {}) for layer, transcoder in sets.items()}
    inputs = {transcoder.hook_in for transcoder in sets.values()}
    with atomic_directory(path, manifest="", owned=lambda name: _is_of(name, inputs)) as staging:
        for layer, transcoder in sets.items():
            folder = staging / f"blocks.{layer}.{transcoder.hook_in}"
            folder.mkdir()
            atomic_save(folder / CONFIG, json.dumps(configs[layer], indent=2))
            write_safetensors(to_table(transcoder, SAELENS), folder / WEIGHTS, like=folder / CONFIG)


def _is_of(name: str, inputs: set[str]) -> bool:
    start, _, rest = name.partition(".")
    number, _, hook = rest.partition(".")
    return start == "blocks" and number.isdigit() and hook in inputs


def _config(layer: int, transcoder: Transcoder, metadata: Mapping[str, Any]) -> dict[str, Any]:
    reading = transcoder.reading
    architecture = _architecture(layer, transcoder)
    config: dict[str, Any] = {
        "d_in": transcoder.d_in,
        "d_sae": transcoder.d_sae,
        "dtype": str(transcoder.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": LAYOUT_VERSION,
            "sae_lens_training_version": None,
            "model_name": None if reading is None else reading.model_name,
            "hook_name": f"blocks.{layer}.{transcoder.hook_in}",
            "hook_name_out": f"blocks.{layer}.{transcoder.hook_out}",
            "hook_head_index": None,
            "context_size": None,
            "prepend_bos": None,
            "dataset_path": None,
            "neuronpedia_id": None,
            "pullback": {"reading": None if reading is None else reading.to_dict(), "version": version()},
        }
        | dict(metadata),
        "architecture": architecture,
    }
    if architecture == "topk":
        config["k"] = transcoder.activation.k  # type: ignore[union-attr]
    if ARCHITECTURES[architecture][0]:
        config["d_out"] = transcoder.d_out
    return config


def _architecture(layer: int, transcoder: Transcoder) -> str:
    activation, skip = transcoder.activation, transcoder.W_skip is not None
    is_autoencoder = transcoder.hook_in == transcoder.hook_out and not skip
    if isinstance(activation, ReLU):
        return "standard" if is_autoencoder else "skip_transcoder" if skip else "transcoder"
    if isinstance(activation, TopK) and activation.relu and is_autoencoder:
        return "topk"
    if isinstance(activation, JumpReLU):
        theta = transcoder.theta
        if (theta is None and float(activation.theta) < 0) or (theta is not None and bool((theta < 0).any())):
            raise ValueError(
                f"layer {layer}: a threshold below 0 keeps negative features, which SAELens cuts off; it cannot be "
                "written there"
            )
        return "jumprelu" if is_autoencoder else "jumprelu_skip_transcoder" if skip else "jumprelu_transcoder"
    raise ValueError(
        f"layer {layer}: SAELens has no transcoder with {activation!r}; pass calibrate={{layer: inputs}}, or "
        "--calibrate FILE, to write thresholds in its place"
    )
