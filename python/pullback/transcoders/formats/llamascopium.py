"""llamascopium's cross-layer transcoders (`config.json` and `sae_weights.safetensors`), read only.

    W_E (L, d_in, F), b_E (L, F), activation_function.log_jumprelu_threshold (L, F)
    W_D.{i} (i + 1, F, d_out), what layers 0 to i write to layer i; b_D.{i} (d_out)
    dataset_average_activation_norm.{hook} ()

With norm_activation dataset-wise the model was trained on activations scaled to an average norm of sqrt(d); that is
folded into the weights. With sparsity_include_decoder_norm thresholds are those of h times the norm of all that the
feature writes, in the units of the training.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pullback.transcoders.crosslayer import CrossLayerTranscoder
from pullback.transcoders.formats.assemble import assemble, gather, gather_by_target
from pullback.transcoders.formats.build import Options, in_block
from pullback.transcoders.formats.crosslayer import must_be_whole
from pullback.transcoders.formats.files import read_json, read_safetensors
from pullback.transcoders.formats.tables import LLAMASCOPIUM_CLT, from_table

CONFIG, WEIGHTS = "config.json", "sae_weights.safetensors"
AVERAGE_NORM = "dataset_average_activation_norm."
SIDES = ("hook_points_in", "hook_points_out")


def load(path: str | os.PathLike[str], options: Options) -> CrossLayerTranscoder:
    """Read a folder; see `load_transcoders`."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    config, file = read_json(folder / CONFIG), folder / WEIGHTS
    _refuse(config, folder / CONFIG, options)
    must_be_whole(Path(path), options)
    hooks = tuple(_hook(config[side], folder / CONFIG) for side in SIDES)
    n_layers = len(config["hook_points_in"])
    tensors = read_safetensors(file)
    norms = {name: tensors.pop(name) for name in list(tensors) if name.startswith(AVERAGE_NORM)}
    tensors["W_D"], pairs = gather_by_target(tensors, "W_D.", n_layers, file)
    tensors["b_D"] = gather(tensors, [f"b_D.{target}" for target in range(n_layers)], file)
    F = round(config["d_model"] * config["expansion_factor"])
    weights = from_table(tensors, LLAMASCOPIUM_CLT, file, {"L": n_layers, "F": F, "d_in": config["d_model"]})
    if config["act_fn"] == "jumprelu":
        if "theta" not in weights:
            raise ValueError(f"{file} has no thresholds, but config.json says act_fn jumprelu; copy both again")
        weights["theta"] = weights["theta"].double().exp()
        if config["sparsity_include_decoder_norm"]:
            weights["theta"] = weights["theta"] / _written(weights["W_dec"], pairs[0], n_layers)
    if config["norm_activation"] == "dataset-wise":
        weights |= {
            f"std_{name}": _average_norms(norms, config[side], file) / math.sqrt(config["d_model"])
            for name, side in zip(("in", "out"), SIDES, strict=True)
        }
    return assemble(weights, pairs, activation=None, hooks=(hooks[0], hooks[1]), options=options, source=file)


def _refuse(config: dict[str, Any], file: Path, options: Options) -> None:
    """Raises ValueError for settings that are missing, or that no `CrossLayerTranscoder` is equal to."""
    if config.get("sae_type") != "clt":
        raise ValueError(
            f"{file}: of llamascopium only cross-layer transcoders are read, sae_type {config.get('sae_type')!r} is "
            "not supported; convert it to SAELens with its own exporter"
        )
    needed = {"d_model", "expansion_factor", "act_fn", "norm_activation", "sparsity_include_decoder_norm", *SIDES}
    missing = needed - set(config)
    if missing:
        raise ValueError(f"{file} does not say {', '.join(sorted(missing))}; copy it again")
    if len(config["hook_points_in"]) != len(config["hook_points_out"]):
        raise ValueError(f"{file}: hook_points_in and hook_points_out must be of as many layers")
    if config["act_fn"] != "jumprelu" and options.activation is None:
        raise ValueError(f"{file}: act_fn {config['act_fn']!r} is not supported, jumprelu is; or pass activation=")
    if config["norm_activation"] not in ("dataset-wise", "inference"):
        raise ValueError(f"{file}: norm_activation {config['norm_activation']!r} is not supported")


def _hook(points: list[str], file: Path) -> str:
    """The name inside its block of the hook of every layer."""
    found = [in_block(point, file) for point in points]
    if [layer for layer, _ in found] != list(range(len(found))) or len({name for _, name in found}) != 1:
        raise ValueError(f"{file}: hooks must be one place in every block from 0 on, got {points}")
    return found[0][1]


def _written(W_dec: Tensor, sources: Tensor, n_layers: int) -> Tensor:
    """Float64[Tensor, 'L F']: norm of what a feature writes to all its targets together"""
    of_pairs = torch.linalg.vector_norm(W_dec, dim=-1, dtype=torch.float64)
    return of_pairs.new_zeros(n_layers, of_pairs.shape[1]).index_add_(0, sources, of_pairs**2).sqrt()


def _average_norms(norms: dict[str, Tensor], hooks: list[str], file: Path) -> Tensor:
    """Float64[Tensor, 'L 1']"""
    found = gather(norms.copy(), [AVERAGE_NORM + hook for hook in hooks], file).double().reshape(len(hooks), -1)
    if found.shape[1] != 1 or not bool(((found > 0) & found.isfinite()).all()):
        raise ValueError(f"{file}: {AVERAGE_NORM}* must be one positive number each, got {found.tolist()}")
    return found
