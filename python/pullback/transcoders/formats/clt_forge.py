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

from pullback.transcoders.crosslayer import CrossLayerTranscoder, SourceLayer
from pullback.transcoders.formats.build import Options, build_layer
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
    hook_in, hook_out = options.hook_in, options.hook_out
    if hook_in is None or hook_out is None:
        raise ValueError(f"{folder}: the files do not say which hooks were trained on; pass hook_in= and hook_out=")
    tensors = {name: tensor for name, tensor in read_safetensors(file).items() if name not in COUNTERS}
    declared = {"L": config.get("n_layers"), "F": config.get("d_latent"), "d_in": config.get("d_in")}
    weights = {ours: tensor.float() for ours, tensor in from_table(tensors, CLT_FORGE, file, declared).items()}
    n_layers, n_pairs = len(weights["W_enc"]), len(weights["W_dec"])
    if n_pairs != n_layers * (n_layers + 1) // 2:
        raise ValueError(f"{file}: W_dec must be of the L (L + 1) / 2 pairs of {n_layers} layers, got {n_pairs}")
    sources, targets = torch.triu_indices(n_layers, n_layers)
    out = weights["scale_out"][targets]
    W_dec, biases = weights["W_dec"] / out[:, None, None], weights["b_dec"] / out[:, None]
    b_dec = torch.zeros(n_layers, biases.shape[1]).index_add_(0, targets, biases)

    def source(layer: int) -> SourceLayer:
        own = {
            "W_enc": weights["W_enc"][layer] * weights["scale_in"][layer],
            "b_enc": weights["b_enc"][layer],
            "W_dec": W_dec[sources == layer].transpose(0, 1),
            "b_dec": b_dec[layer],
            "theta": weights["theta"][layer].exp(),
        }
        return build_layer(
            SourceLayer, own, activation=None, hook_in=hook_in, hook_out=hook_out, options=options, source=file
        )

    return CrossLayerTranscoder({layer: source(layer) for layer in range(n_layers)})
