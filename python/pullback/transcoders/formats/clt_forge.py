"""CLT-Forge's cross-layer transcoders (`clt_cfg.json` and `clt_weights.safetensors`), read only.

    W_enc (L, d_in, F), b_enc (L, F), log_threshold (L, F)
    W_dec (N, F, d_out), b_dec (N, d_out), for the N = L (L + 1) / 2 pairs (0, 0), (0, 1), ..., (1, 1), ...
    estimated_norm_scaling_factor_in (L), estimated_norm_scaling_factor_out (L)

Inputs are multiplied by the first of these factors, outputs divided by the second; both are folded into the weights.
The biases of a target layer add up. The hooks are not in the files.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from pullback.transcoders.crosslayer import CrossLayerTranscoder
from pullback.transcoders.formats.assemble import assemble, hooks_given, sums_by_target
from pullback.transcoders.formats.build import Options
from pullback.transcoders.formats.crosslayer import must_be_whole
from pullback.transcoders.formats.files import read_json, read_safetensors
from pullback.transcoders.formats.tables import CLT_FORGE, from_table

CONFIG, WEIGHTS = "clt_cfg.json", "clt_weights.safetensors"
COUNTERS = ("layer_mask", "feature_count")  # of training


def load(path: str | os.PathLike[str], options: Options) -> CrossLayerTranscoder:
    """Read a folder; see `load_transcoders`."""
    folder = Path(path)
    must_be_whole(folder, options)
    config, file = read_json(folder / CONFIG), folder / WEIGHTS
    if config.get("feature_sharding"):
        raise ValueError(f"{folder} is divided by features among several files; save it whole with CLT-Forge first")
    if not config.get("cross_layer_decoders", True) or config.get("activation_fn", "jumprelu") != "jumprelu":
        raise ValueError(
            f"{folder / CONFIG}: cross_layer_decoders={config.get('cross_layer_decoders')} and "
            f"activation_fn={config.get('activation_fn')!r} are not supported; cross-layer JumpReLUs are"
        )
    hooks = hooks_given(folder, options)
    tensors = {name: tensor for name, tensor in read_safetensors(file).items() if name not in COUNTERS}
    declared = {"L": config.get("n_layers"), "F": config.get("d_latent"), "d_in": config.get("d_in")}
    weights = from_table(tensors, CLT_FORGE, file, declared)
    n_layers, n_pairs = len(weights["W_enc"]), len(weights["W_dec"])
    if n_pairs != n_layers * (n_layers + 1) // 2:
        raise ValueError(f"{file}: W_dec must be of the L (L + 1) / 2 pairs of {n_layers} layers, got {n_pairs}")
    sources, targets = torch.triu_indices(n_layers, n_layers)
    weights["b_dec"] = sums_by_target(weights["b_dec"], targets, n_layers)
    weights["theta"] = weights["theta"].double().exp()
    weights["std_in"] = 1 / weights.pop("scale_in")[:, None].double()
    weights["std_out"] = 1 / weights.pop("scale_out")[:, None].double()
    return assemble(weights, (sources, targets), activation=None, hooks=hooks, options=options, source=file)
