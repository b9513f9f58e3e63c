"""circuit-tracer's per-layer sets as circuit-tracer itself reads them.

    config.yaml             model_name, model_kind, feature_input_hook, feature_output_hook, scan, optional transcoders
    layer_{i}.safetensors   W_enc (F, d), b_enc (F), W_dec (F, d), b_dec (d), optional W_skip (d, d) and
                            activation_function.threshold (F)

The native format is this layout with more in its configuration, and its reader reads both. Here is what it has besides:
configurations that list the file of each layer (local, or `hf://`, of GemmaScope too), and a writer of what its loader
understands: layers from 0 on, one width, thresholds, no top-k (a local set is run as ReLU whatever its `activation`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pullback._util.atomic import atomic_directory
from pullback.transcoders.activations import JumpReLU, ReLU
from pullback.transcoders.crosslayer import CrossLayerTranscoder, SourceLayer
from pullback.transcoders.formats import crosslayer, gemmascope, native
from pullback.transcoders.formats.build import Options
from pullback.transcoders.sets import TranscoderSet
from pullback.transcoders.transcoder import Transcoder


def load(path: str | os.PathLike[str], options: Options) -> TranscoderSet:
    """Read a set whose configuration lists its files; one that does not is the native reader's."""
    directory = Path(path)
    config = native.read_config(directory)
    files = config.get("transcoders")
    if files is None:
        return native.load(directory, options)
    if not isinstance(files, list) or not files or not all(isinstance(file, str) for file in files):
        raise ValueError(f"{directory / native.CONFIG}: transcoders must list one file a layer, got {files!r}")
    wanted = range(len(files)) if options.layer is None else [options.layer]
    if options.layer is not None and not 0 <= options.layer < len(files):
        raise ValueError(f"{directory} has no layer {options.layer}; its configuration lists {len(files)}")
    return TranscoderSet({layer: _read(directory, files[layer], config, options) for layer in wanted})


def _read(directory: Path, name: str, config: dict[str, Any], options: Options) -> Transcoder:
    file = _located(directory, name)
    hooks = (config.get("feature_input_hook"), config.get("feature_output_hook"))
    if gemmascope.is_one(file):
        if None in hooks:
            raise ValueError(f"{directory / native.CONFIG} lacks feature_input_hook or feature_output_hook")
        return gemmascope.read(file, options, hooks=(str(hooks[0]), str(hooks[1])))
    return native.read_layer(file, {key: config.get(key) for key in native.SETTINGS}, None, options)


def _located(directory: Path, name: str) -> Path:
    from pullback.transcoders import hub

    if not name.startswith("hf://"):
        return directory / name
    reference = hub.parse(name)
    assert reference is not None
    return hub.fetch(reference)


# Writing


def save(sets: TranscoderSet | CrossLayerTranscoder, path: str | os.PathLike[str], *, scan: str | None = None) -> None:
    """Write a set or a cross-layer transcoder for circuit-tracer; see `LayeredDictionary.save`.

    Args:
        scan: name under which feature pages are found, usually the hub repository; by default the folder's name.
    """
    _check(sets)
    cross_layer = isinstance(sets, CrossLayerTranscoder)
    sets = crosslayer.as_circuit_tracer_reads(sets) if cross_layer else sets
    first = sets[0]
    config = {
        "model_name": "unknown" if first.reading is None else first.reading.model_name,
        "model_kind": crosslayer.KIND if cross_layer else "transcoder_set",
        "feature_input_hook": first.hook_in,
        "feature_output_hook": first.hook_out,
        "scan": scan or Path(os.path.realpath(path)).name,
    }
    with atomic_directory(path, manifest=native.CONFIG, owned=native.is_ours) as staging:
        native.write_config(staging, config)
        for layer, features in sets.items():
            if isinstance(features, SourceLayer):
                crosslayer.write_layer(staging, layer, features)
            else:
                native.write_layer(staging, layer, features)


def _check(sets: TranscoderSet | CrossLayerTranscoder) -> None:
    if sets.layers != list(range(len(sets))):
        raise ValueError(f"circuit-tracer needs every layer from 0 on, this set has {sets.layers}; see format=pullback")
    for layer, transcoder in sets.items():
        if not isinstance(transcoder.activation, ReLU | JumpReLU):
            raise ValueError(
                f"layer {layer}: circuit-tracer runs a local set with {transcoder.activation!r} as ReLU; pass "
                "calibrate={layer: inputs}, or --calibrate FILE, to write thresholds in its place"
            )
    kinds = {(tc.d_in, tc.d_sae, tc.d_out, tc.hook_in, tc.hook_out) for tc in sets.values()}
    if len(kinds) > 1 or sets[0].d_in != sets[0].d_out:
        raise ValueError(
            "circuit-tracer needs one width, one number of features and one pair of hooks for all layers, got "
            f"(d_in, d_sae, d_out, hook_in, hook_out) {sorted(kinds)}"
        )
