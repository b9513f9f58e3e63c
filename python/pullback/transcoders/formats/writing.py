"""Saving a set in a layout by its name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pullback.transcoders.calibration import to_jumprelu
from pullback.transcoders.formats import circuit_tracer, native, saelens, sparsify
from pullback.transcoders.sets import TranscoderSet

WRITERS = {
    "pullback": native.save,
    "saelens": saelens.save,
    "sparsify": sparsify.save,
    "circuit-tracer": circuit_tracer.save,
}
OPTIONS = {"pullback": (), "saelens": ("metadata",), "sparsify": ("hookpoint",), "circuit-tracer": ("scan",)}


def save(
    sets: TranscoderSet,
    path: str | os.PathLike[str],
    format: str,
    *,
    calibrate: Mapping[int, Tensor] | None = None,
    **options: Any,
) -> None:
    """See `TranscoderSet.save`."""
    if format not in WRITERS:
        raise ValueError(f"save: format must be one of {', '.join(WRITERS)}, got {format!r}")
    unknown = sorted(set(options) - set(OPTIONS[format]))
    if unknown:
        raise ValueError(f"save: {format} has no option {', '.join(unknown)}; it has {', '.join(OPTIONS[format])}")
    WRITERS[format](sets if calibrate is None else calibrated(sets, calibrate), path, **options)


def calibrated(sets: TranscoderSet, inputs: Mapping[int, Tensor]) -> TranscoderSet:
    """The set with thresholds in the place of every top-k. Raises ValueError if a layer's inputs are missing."""
    missing = sorted(set(sets) - set(inputs))
    if missing:
        raise ValueError(f"calibrate: no inputs for layers {missing}; give {{layer: inputs [n, d_in]}} for every layer")
    return TranscoderSet({layer: to_jumprelu(transcoder, inputs[layer]) for layer, transcoder in sets.items()})


def push(
    sets: TranscoderSet,
    repo_id: str,
    format: str,
    calibrate: Mapping[int, Tensor] | None,
    private: bool,
    revision: str | None,
    token: str | None,
    options: Mapping[str, Any],
) -> str:
    """See `TranscoderSet.push_to_hub`."""
    from pullback.transcoders import hub

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "set"
        save(sets, folder, format, calibrate=calibrate, **options)
        message = f"{len(sets)} transcoders, {format} layout"
        return hub.push(folder, repo_id, private=private, revision=revision, token=token, message=message)
