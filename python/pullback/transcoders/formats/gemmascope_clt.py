"""GemmaScope 2's cross-layer transcoders (`params_layer_{i}.safetensors`), read only.

w_enc (d_in, F), b_enc, w_dec (F, L, d_out), b_dec, threshold, and for the affine ones affine_skip_connection
(d_in, d_out), of every one of L layers. w_dec is over all layers: below its own, a feature writes nothing. Negative
features are cut off before the threshold is applied.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from pullback.transcoders.crosslayer import CrossLayerTranscoder, SourceLayer
from pullback.transcoders.formats.build import Options, build_layer, relu_then_threshold
from pullback.transcoders.formats.crosslayer import must_be_whole
from pullback.transcoders.formats.files import read_json
from pullback.transcoders.formats.gemmascope import hooks_of
from pullback.transcoders.formats.tables import GEMMASCOPE2_CLT, from_table

CLT_LAYER = re.compile(r"params_layer_(\d+)\.safetensors")


def load(path: str | os.PathLike[str], options: Options) -> CrossLayerTranscoder:
    """Read a cross-layer transcoder from its folder; see `load_transcoders`."""
    folder = Path(path)
    must_be_whole(folder, options)
    found = {int(match[1]): file for file in folder.iterdir() if (match := CLT_LAYER.fullmatch(file.name))}
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    return _read({layer: found[layer] for layer in sorted(found)}, hooks_of(config, folder, options), options)


def _read(files: Mapping[int, Path], hooks: tuple[str, str], options: Options) -> CrossLayerTranscoder:
    """From the file of every layer, ascending. Raises ValueError if layers are missing."""
    sources = {}
    for place, (layer, file) in enumerate(files.items()):
        weights = from_table(options.read(file), GEMMASCOPE2_CLT, file)
        n_layers = weights["W_dec"].shape[1]
        if layer != place or n_layers != len(files):
            raise ValueError(f"{file}: w_dec is of {n_layers} layers, and there are files of {list(files)}")
        weights["W_dec"] = weights["W_dec"][:, layer:]
        weights["theta"] = relu_then_threshold(weights["theta"])
        sources[layer] = build_layer(
            SourceLayer, weights, activation=None, hook_in=hooks[0], hook_out=hooks[1], options=options, source=file
        )
    return CrossLayerTranscoder(sources)
