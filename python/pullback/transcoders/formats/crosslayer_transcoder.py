"""crosslayer-transcoder's cross-layer transcoders (`config.yaml` and `checkpoint.safetensors`), read only.

    encoder.W (L, d_in, F), encoder.b (L, F), nonlinearity.theta (1, L, F)
    decoder.W_{i} (i + 1, F, d_out), what layers 0 to i write to layer i; decoder.b (L, d_out)
    input_standardizer.mean, .std (L, d_in), output_standardizer.mean, .std (L, d_out), unless already folded

`config.yaml` is a tree of class_path and init_args. Inputs are standardised, outputs brought back; both are folded into
the weights. Negative features are cut off before the threshold is applied. The hooks are not in the files.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from pullback.transcoders.activations import ReLU
from pullback.transcoders.crosslayer import CrossLayerTranscoder
from pullback.transcoders.formats import native
from pullback.transcoders.formats.assemble import assemble, gather_by_target, hooks_given
from pullback.transcoders.formats.build import Options, relu_then_threshold
from pullback.transcoders.formats.crosslayer import KIND, must_be_whole
from pullback.transcoders.formats.files import read_safetensors
from pullback.transcoders.formats.tables import CROSSLAYER_TRANSCODER, from_table

WEIGHTS = "checkpoint.safetensors"
BANDWIDTH = "nonlinearity.bandwidth"  # of training
READ = {  # classes by their place in the tree; a Standardizer leaves as it is what it is given
    "encoder": ("Encoder",),
    "decoder": ("CrosslayerDecoder",),
    "nonlinearity": ("JumpReLU", "ReLU"),
    "input_standardizer": ("DimensionwiseInputStandardizer", "Standardizer", None),
    "output_standardizer": ("DimensionwiseOutputStandardizer", "Standardizer", None),
}


def load(path: str | os.PathLike[str], options: Options) -> CrossLayerTranscoder:
    """Read a folder; see `load_transcoders`."""
    folder = Path(path)
    must_be_whole(folder, options)
    file, settings = folder / native.CONFIG, native.read_config(folder, KIND).get("model")
    if _class(settings) != "CrossLayerTranscoder":
        raise ValueError(f"{file}: model must be a CrossLayerTranscoder, got {_class(settings)!r}")
    parts = _arguments(settings)
    classes = {part: _class(parts.get(part)) for part in READ}
    for part, name in classes.items():
        if name not in READ[part] and not (part == "nonlinearity" and options.activation is not None):
            known = ", ".join(str(known) for known in READ[part])
            raise ValueError(f"{file}: {part} {name!r} is not supported; it must be one of {known}")
    sizes = _arguments(parts["encoder"])
    declared = {"L": sizes.get("n_layers"), "F": sizes.get("d_features"), "d_in": sizes.get("d_acts")}
    if not isinstance(declared["L"], int):
        raise ValueError(f"{file}: n_layers of the encoder must be a number, got {declared['L']!r}")
    tensors = {name: tensor for name, tensor in read_safetensors(folder / WEIGHTS).items() if name != BANDWIDTH}
    tensors["decoder.W"], pairs = gather_by_target(tensors, "decoder.W_", declared["L"], folder / WEIGHTS)
    weights = from_table(tensors, CROSSLAYER_TRANSCODER, folder / WEIGHTS, declared)
    _agree(classes, weights, folder / WEIGHTS)
    if "theta" in weights:
        weights["theta"] = relu_then_threshold(weights["theta"][0])
    return assemble(
        weights,
        pairs,
        activation=ReLU() if classes["nonlinearity"] == "ReLU" else None,
        hooks=hooks_given(folder, options),
        options=options,
        source=folder / WEIGHTS,
    )


def _class(settings: Any) -> str | None:
    """Name of the class that a node of the tree stands for, without its module."""
    return str(settings.get("class_path")).rpartition(".")[2] if isinstance(settings, dict) else None


def _arguments(settings: Any) -> dict[str, Any]:
    return settings.get("init_args") or {}


def _agree(classes: dict[str, str | None], weights: dict[str, Tensor], file: Path) -> None:
    """Raises ValueError where the file has not the tensors that its configuration speaks of."""
    for part, names in {
        "nonlinearity": {"theta"},
        "input_standardizer": {"mean_in", "std_in"},
        "output_standardizer": {"mean_out", "std_out"},
    }.items():
        expected = names if classes[part] in READ[part][:1] else set()
        if names & set(weights) != expected:
            theirs = {CROSSLAYER_TRANSCODER.tensors[name][0] for name in names}
            raise ValueError(
                f"{file}: config.yaml says {part} {classes[part]}, which has {'' if expected else 'not '}the tensors "
                f"{', '.join(sorted(theirs))}; the two belong to different transcoders"
            )
