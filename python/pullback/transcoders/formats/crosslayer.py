"""Cross-layer transcoders: circuit-tracer's layout with a configuration that leaves nothing to guess.

    config.yaml             as for per-layer sets, see `native`
    W_enc_{i}.safetensors   W_enc_{i} (F, d_in), b_enc_{i} (F), b_dec_{i} (d_out)
                            optional threshold_{i} (F), W_skip_{i} (d_in, d_out): the other way round than our W_skip
    W_dec_{i}.safetensors   W_dec_{i} (F, t, d_out), for the t layers from i on; with tied decoders t is 1

`model_kind` is cross_layer_transcoder, and `decoder_tying` stands beside it where decoders are tied. circuit-tracer
itself knows neither ties, nor layers left out, nor any activation but thresholds, or none.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pullback._util.atomic import atomic_directory
from pullback.transcoders.activations import JumpReLU, ReLU
from pullback.transcoders.crosslayer import CrossLayerTranscoder, SourceLayer
from pullback.transcoders.formats import native
from pullback.transcoders.formats.build import Options
from pullback.transcoders.formats.files import write_safetensors
from pullback.transcoders.formats.tables import CIRCUIT_TRACER_CLT, from_table, to_table
from pullback.transcoders.reading import ModelReading

KIND = "cross_layer_transcoder"
ENCODER_FILE = re.compile(r"W_enc_(\d+)\.safetensors")


def save(clt: CrossLayerTranscoder, path: str | os.PathLike[str]) -> None:
    """Write a cross-layer transcoder to directory `path`; see `LayeredDictionary.save`."""
    config = native.config_of(clt, KIND)
    if clt.decoder_tying != "none":
        config["decoder_tying"] = clt.decoder_tying
    with atomic_directory(path, manifest=native.CONFIG, owned=native.is_ours) as staging:
        native.write_config(staging, config)
        for layer, source in clt.items():
            write_layer(staging, layer, source)


def load(path: str | os.PathLike[str], options: Options) -> CrossLayerTranscoder:
    """Read a cross-layer transcoder from directory `path`; see `load_transcoders`."""
    directory = Path(path)
    must_be_whole(directory, options)
    config = native.read_config(directory, KIND)
    layers = native.layers_in(directory, config, ENCODER_FILE, lambda layer: file_name("W_enc", layer))
    return CrossLayerTranscoder(
        {layer: _read(directory, layer, *native.said_of(config, layer), options) for layer in layers},
        config.get("decoder_tying", "none"),
    )


def must_be_whole(path: Path, options: Options) -> None:
    """Raises ValueError where one layer, or one file, of a cross-layer transcoder is asked for."""
    if options.layer is not None or path.is_file():
        raise ValueError(
            f"{path}: the features of a cross-layer transcoder write to several layers, so it is loaded whole: give "
            "its folder, and no layer="
        )


def file_name(weight: str, layer: int) -> str:
    return f"{weight}_{layer}.safetensors"


def write_layer(directory: Path, layer: int, source: SourceLayer) -> None:
    tensors = {f"{name}_{layer}": tensor for name, tensor in to_table(source, CIRCUIT_TRACER_CLT).items()}
    decoder = f"W_dec_{layer}"
    for weight, own in (("W_dec", {decoder: tensors.pop(decoder)}), ("W_enc", tensors)):
        write_safetensors(own, directory / file_name(weight, layer), like=directory / native.CONFIG)


def as_circuit_tracer_reads(clt: CrossLayerTranscoder) -> CrossLayerTranscoder:
    """The same with a decoder of its own for every pair of layers, and thresholds in all layers or in none.

    Raises: ValueError for what has no such form.
    """
    skips = {layer for layer, source in clt.items() if source.W_skip is not None}
    if len(skips) not in (0, len(clt)):
        raise ValueError(f"circuit-tracer needs W_skip in every layer or in none, this has it in {sorted(skips)}")
    jumps = any(isinstance(source.activation, JumpReLU) for source in clt.values())

    def untied(layer: int, source: SourceLayer) -> SourceLayer:
        zero = JumpReLU(source.b_enc.new_zeros(source.d_sae))
        return SourceLayer(
            source.W_enc,
            source.b_enc,
            torch.stack([clt.decoder(layer, dst)[:] for dst in clt.targets(layer)], 1),
            source.b_dec,
            source.W_skip,
            activation=zero if jumps and isinstance(source.activation, ReLU) else source.activation,
            hook_in=source.hook_in,
            hook_out=source.hook_out,
            reading=source.reading,
        )

    return CrossLayerTranscoder({layer: untied(layer, source) for layer, source in clt.items()})


def _read(
    directory: Path, layer: int, settings: dict[str, Any], reading: ModelReading | None, options: Options
) -> SourceLayer:
    file = directory / file_name("W_enc", layer)
    tensors: dict[str, Tensor] = {}
    for weight in ("W_enc", "W_dec"):
        tensors |= options.read(directory / file_name(weight, layer))
    own = {name.removesuffix(f"_{layer}"): tensor for name, tensor in tensors.items()}
    return native.made(SourceLayer, from_table(own, CIRCUIT_TRACER_CLT, file), file, settings, reading, options)
