"""EleutherAI sparsify: a run root with one folder a hookpoint, or one such folder.

    {run}/{hookpoint}/cfg.json          activation, k, num_latents or expansion_factor, transcode, skip_connection, d_in
    {run}/{hookpoint}/sae.safetensors   encoder.weight (F, d), encoder.bias (F), W_dec (F, d), b_dec (d), W_skip (d, d)

Hookpoints are modules: `layers.3.mlp`, `h.3.mlp`, with or without `model.`, `gpt_neox.`, `transformer.` before them. A
transcoder of `layers.3.mlp` reads that module's input and stands in for its output. An autoencoder stands at its output
and subtracts `b_dec` from its input first, which is folded away here.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from pullback._util.atomic import atomic_directory, atomic_save
from pullback._util.version import version
from pullback.transcoders.activations import TopK
from pullback.transcoders.formats.build import Options, build, one_per_layer
from pullback.transcoders.formats.files import folders_with, read_json, write_safetensors
from pullback.transcoders.formats.tables import SPARSIFY, from_table, to_table
from pullback.transcoders.reading import ModelReading
from pullback.transcoders.sets import TranscoderSet
from pullback.transcoders.transcoder import Transcoder

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
HOOKPOINT = re.compile(r"(?:(?:model|gpt_neox|transformer)\.)?(?:layers|h)\.(\d+)(?:\.(.+))?")
TRANSCODER_HOOKS = {"mlp": ("mlp.hook_in", "hook_mlp_out")}
AUTOENCODER_HOOKS = {
    None: "hook_resid_post",
    "mlp": "hook_mlp_out",
    "attn": "hook_attn_out",
    "self_attn": "hook_attn_out",
    "attention": "hook_attn_out",
}
OF_CLT_TRAINING = ("W_decs.", "b_decs.", "W_skips.", "post_enc", "in_norm", "out_norm")


def load(path: str | os.PathLike[str], options: Options) -> TranscoderSet:
    """Read a run root or one hookpoint; see `load_transcoders`."""
    directory = Path(path)
    folders = folders_with(WEIGHTS, directory, "sparsify")
    if options.layer is not None and len(folders) > 1:
        folders = [folder for folder in folders if _layer(folder, options)[0] == options.layer]
        if not folders:
            raise ValueError(f"{directory} has no layer {options.layer}")
    found = one_per_layer([(_layer(folder, options)[0], folder) for folder in folders], directory)
    return TranscoderSet({layer: _read(folder, options) for layer, folder in found.items()})


def _layer(folder: Path, options: Options) -> tuple[int, str | None]:
    """Layer and module of a folder's name; of its parent's where runs of several seeds put `seed0` below it."""
    name = folder.parent.name if re.fullmatch(r"seed\d+", folder.name) else folder.name
    match = HOOKPOINT.fullmatch(name)
    if match is not None:
        return int(match[1]), match[2]
    if options.layer is None:
        raise ValueError(
            f'{folder}: "{name}" is not a hookpoint like "layers.3.mlp" or "h.3.mlp"; pass layer=, hook_in= and '
            "hook_out="
        )
    return options.layer, ""


def _read(folder: Path, options: Options) -> Transcoder:
    config = read_json(folder / CONFIG)
    tensors = options.read(folder / WEIGHTS)
    if any(name.startswith(OF_CLT_TRAINING) for name in tensors):
        raise ValueError(f"{folder}: written by clt-training (a cross-layer transcoder), which is not supported")
    activation = _activation(config, folder)
    d_in = config.get("d_in")
    if d_in is None:
        raise ValueError(f"{folder / CONFIG} lacks d_in; it is not the configuration of a sparsify dictionary")
    d_sae = config.get("num_latents") or d_in * config.get("expansion_factor", 32)
    transcode, skip = bool(config.get("transcode", False)), bool(config.get("skip_connection", False))
    weights = from_table(tensors, SPARSIFY, folder / WEIGHTS, {"F": d_sae, "d_in": d_in, "d_out": d_in})
    if skip != ("W_skip" in weights):
        there = "has" if "W_skip" in weights else "lacks"
        raise ValueError(f"{folder}: {CONFIG} says skip_connection={skip}, but {WEIGHTS} {there} W_skip")
    subtract = options.subtract_b_dec if options.subtract_b_dec is not None else not transcode
    if subtract:
        weights["b_in"] = weights["b_dec"]
    ours = config.get("pullback") or {}
    hooks = _hooks(folder, transcode, options, ours)
    reading = ModelReading.from_dict(ours["reading"]) if ours.get("reading") else None
    return build(
        weights,
        activation=activation,
        hook_in=hooks[0],
        hook_out=hooks[1],
        options=options,
        source=folder / WEIGHTS,
        reading=reading,
    )


def _activation(config: dict[str, Any], folder: Path) -> TopK:
    name = config.get("activation", "topk")
    if name != "topk":
        raise ValueError(f"{folder}: activation {name!r} is not supported; of sparsify's, only topk is")
    if config.get("multi_topk"):
        raise ValueError(
            f"{folder}: multi_topk is not supported: it was trained to be read at k and at 4k features, and a "
            "transcoder has one k; set it to false in cfg.json to read the one at k"
        )
    return TopK(config.get("k", 32))


def _hooks(folder: Path, transcode: bool, options: Options, ours: dict[str, Any]) -> tuple[str, str]:
    if options.hook_in and options.hook_out:
        return options.hook_in, options.hook_out
    if ours.get("hook_in") and ours.get("hook_out"):
        return ours["hook_in"], ours["hook_out"]
    module = _layer(folder, options)[1]
    if transcode and module in TRANSCODER_HOOKS:
        return TRANSCODER_HOOKS[module]
    if not transcode and module in AUTOENCODER_HOOKS:
        return AUTOENCODER_HOOKS[module], AUTOENCODER_HOOKS[module]
    kind = "a transcoder" if transcode else "an autoencoder"
    raise ValueError(
        f"{folder}: no hook is known for {kind} at module {module!r}; pass hook_in= and hook_out= (names inside the "
        'block, like "mlp.hook_in")'
    )


# Writing


def save(sets: TranscoderSet, path: str | os.PathLike[str], *, hookpoint: str = "layers.{layer}.mlp") -> None:
    """Write a run root; see `TranscoderSet.save`.

    Args:
        hookpoint: names of the folders, as sparsify names the model's modules ("h.{layer}.mlp" for GPT-2).
    """
    if HOOKPOINT.fullmatch(hookpoint.replace("{layer}", "0")) is None or "{layer}" not in hookpoint:
        raise ValueError(f'hookpoint must look like "layers.{{layer}}.mlp" or "h.{{layer}}.mlp", got "{hookpoint}"')
    configs = {layer: _config(layer, transcoder) for layer, transcoder in sets.items()}
    ours = re.compile(re.escape(hookpoint).replace(re.escape("{layer}"), r"\d+"))
    with atomic_directory(path, manifest="", owned=lambda name: ours.fullmatch(name) is not None) as staging:
        for layer, transcoder in sets.items():
            folder = staging / hookpoint.replace("{layer}", str(layer))
            folder.mkdir()
            atomic_save(folder / CONFIG, json.dumps(configs[layer], indent=2))
            write_safetensors(to_table(transcoder, SPARSIFY), folder / WEIGHTS, like=folder / CONFIG)


def _config(layer: int, transcoder: Transcoder) -> dict[str, Any]:
    activation = transcoder.activation
    if not isinstance(activation, TopK) or not activation.relu:
        raise ValueError(
            f"layer {layer}: sparsify knows only TopK after a ReLU, this transcoder is {transcoder.extra_repr()}; "
            'save it as "saelens" or "circuit-tracer"'
        )
    if transcoder.d_in != transcoder.d_out:
        raise ValueError(
            f"layer {layer}: sparsify has one width, this transcoder goes from {transcoder.d_in} to {transcoder.d_out}"
        )
    return {
        "activation": "topk",
        "expansion_factor": max(1, transcoder.d_sae // transcoder.d_in),
        "normalize_decoder": False,
        "num_latents": transcoder.d_sae,
        "k": activation.k,
        "multi_topk": False,
        "skip_connection": transcoder.W_skip is not None,
        "transcode": True,  # also for an autoencoder: b_dec is not subtracted from the input
        "d_in": transcoder.d_in,
        "pullback": {
            "hook_in": transcoder.hook_in,
            "hook_out": transcoder.hook_out,
            "reading": None if transcoder.reading is None else transcoder.reading.to_dict(),
            "version": version(),
        },
    }
