"""Saving a set in a layout by its name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pullback.transcoders.calibration import to_jumprelu
from pullback.transcoders.crosslayer import CrossLayerTranscoder
from pullback.transcoders.formats import circuit_tracer, crosslayer, native, saelens, sparsify
from pullback.transcoders.layered import LayeredDictionary

WRITERS = {
    "pullback": native.save,
    "saelens": saelens.save,
    "sparsify": sparsify.save,
    "circuit-tracer": circuit_tracer.save,
}
CROSS_LAYER_WRITERS = {"pullback": crosslayer.save, "circuit-tracer": circuit_tracer.save}
OPTIONS = {"pullback": (), "saelens": ("metadata",), "sparsify": ("hookpoint",), "circuit-tracer": ("scan",)}


def save(
    sets: LayeredDictionary,
    path: str | os.PathLike[str],
    format: str,
    *,
    calibrate: Mapping[int, Tensor] | None = None,
    **options: Any,
) -> None:
    """See `LayeredDictionary.save`."""
    if format not in WRITERS:
        raise ValueError(f"save: format must be one of {', '.join(WRITERS)}, got {format!r}")
    unknown = sorted(set(options) - set(OPTIONS[format]))
    if unknown:
        raise ValueError(f"save: {format} has no option {', '.join(unknown)}; it has {', '.join(OPTIONS[format])}")
    writers = CROSS_LAYER_WRITERS if isinstance(sets, CrossLayerTranscoder) else WRITERS
    if format not in writers:
        raise ValueError(
            f"save: {format} has no layout for features that write to several layers; a cross-layer transcoder can be "
            f"written as {' or '.join(writers)}"
        )
    writers[format](sets if calibrate is None else calibrated(sets, calibrate), path, **options)


def calibrated(sets: LayeredDictionary, inputs: Mapping[int, Tensor]) -> LayeredDictionary:
    """The set with thresholds in the place of every top-k. Raises ValueError if a layer's inputs are missing."""
    missing = sorted(set(sets) - set(inputs))
    if missing:
        raise ValueError(f"calibrate: no inputs for layers {missing}; give {{layer: inputs [n, d_in]}} for every layer")
    return sets.like({layer: to_jumprelu(features, inputs[layer]) for layer, features in sets.items()})


def push(
    sets: LayeredDictionary,
    repo_id: str,
    format: str,
    calibrate: Mapping[int, Tensor] | None,
    private: bool,
    revision: str | None,
    token: str | None,
    options: Mapping[str, Any],
) -> str:
    """See `LayeredDictionary.push_to_hub`."""
    from pullback.transcoders import hub

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "set"
        save(sets, folder, format, calibrate=calibrate, **options)
        message = f"{len(sets)} layers, {format} layout"
        return hub.push(folder, repo_id, private=private, revision=revision, token=token, message=message)
