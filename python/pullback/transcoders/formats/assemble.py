"""Cross-layer transcoders from files that hold the tensors of all layers: gathered, unscaled, and put together."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pullback.transcoders.activations import Activation
from pullback.transcoders.crosslayer import CrossLayerTranscoder, SourceLayer
from pullback.transcoders.formats.build import Options, build_layer


def gather(
    tensors: dict[str, Tensor],
    names: list[str],
    source: str | os.PathLike[str],
    join: Callable[[list[Tensor]], Tensor] = torch.stack,
) -> Tensor:
    """Take the named tensors out of `tensors`, as one. Raises ValueError if some are missing or have other shapes."""
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ValueError(f"{source}: tensors {missing} are missing; is this another format, or a part of a file?")
    own = [tensors.pop(name) for name in names]
    try:
        return join(own)
    except RuntimeError as error:
        shapes = {name: list(tensor.shape) for name, tensor in zip(names, own, strict=True)}
        raise ValueError(f"{source}: tensors of different layers do not fit together: {shapes}") from error


def gather_by_target(
    tensors: dict[str, Tensor], name: str, n_layers: int, source: str | os.PathLike[str]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Take `name` + i (i + 1, F, d_out), what layers 0 to i write to layer i, out of `tensors` for all layers i: as
    W_dec and pairs of `assemble`. Raises ValueError as `gather`, or if one is not of i + 1 layers."""
    names = [f"{name}{target}" for target in range(n_layers)]
    wrong = {
        own: list(tensors[own].shape)
        for number, own in enumerate(names, 1)
        if own in tensors and tensors[own].shape[:1] != (number,)
    }
    if wrong:
        raise ValueError(f"{source}: {name}i must be of the i + 1 layers up to its target i, got {wrong}")
    targets, sources = torch.tril_indices(n_layers, n_layers)
    return gather(tensors, names, source, torch.cat), (sources, targets)


def hooks_given(source: str | os.PathLike[str], options: Options) -> tuple[str, str]:
    """The hooks of a layout whose files name none. Raises ValueError unless both are given."""
    if options.hook_in is None or options.hook_out is None:
        raise ValueError(f"{source}: the files do not say which hooks were trained on; pass hook_in= and hook_out=")
    return options.hook_in, options.hook_out


def sums_by_target(biases: Tensor, targets: Tensor, n_layers: int) -> Tensor:
    """Float[Tensor, 'N d_out'] of N decoders, Int[Tensor, 'N'] -> Float64[Tensor, 'L d_out']"""
    return biases.new_zeros(n_layers, biases.shape[1], dtype=torch.float64).index_add_(0, targets, biases.double())


def kept_dtype(stored: Tensor, options: Options) -> torch.dtype:
    """Of the weights in memory; see `load_transcoders`."""
    return options.dtype or torch.promote_types(stored.dtype, torch.float32)


def assemble(
    weights: Mapping[str, Tensor],
    pairs: tuple[Tensor, Tensor],
    *,
    tying: str = "none",
    activation: Activation | None,
    hooks: tuple[str, str],
    options: Options,
    source: str | os.PathLike[str],
) -> CrossLayerTranscoder:
    """A transcoder of layers 0 to L - 1, with what standardises inputs and targets folded into it in float64:

    y_m = (sum over l of act((x_l - mean_in) / std_in W_enc^T + b_enc) W_dec[l -> m] + b_dec) std_out + mean_out

    Args:
        weights: W_enc (L, F, d_in), b_enc (L, F), W_dec (N, F, d_out), b_dec (L, d_out); theta (L, F) and mean_in,
            std_in, mean_out, std_out (L, d) where there are any. A std may be (L, 1).
        pairs: Int[Tensor, 'N'] twice: source and target layer of every W_dec, targets of one source ascending. With
            tied decoders both are the layer that holds it.
        tying: decoder_tying of the transcoder; decoders that are tied per source have no std_out.
    """
    kept = replace(options, dtype=kept_dtype(weights["W_enc"], options))
    of_source, of_target = pairs

    def layer_of(layer: int) -> SourceLayer:
        own = {name: tensor[layer].double() for name, tensor in weights.items() if name != "W_dec"}
        rows = of_source == layer
        own["W_dec"] = weights["W_dec"][rows].double()
        if "std_in" in own:
            own["W_enc"] = own["W_enc"] / own.pop("std_in")
        if "mean_in" in own:
            own["b_enc"] = own["b_enc"] - own["W_enc"] @ own.pop("mean_in")
        if "std_out" in own:
            own["W_dec"] = own["W_dec"] * weights["std_out"][of_target[rows], None].double()
            own["b_dec"] = own["b_dec"] * own.pop("std_out")
        if "mean_out" in own:
            own["b_dec"] = own["b_dec"] + own.pop("mean_out")
        own["W_dec"] = own["W_dec"].transpose(0, 1)
        return build_layer(
            SourceLayer, own, activation=activation, hook_in=hooks[0], hook_out=hooks[1], options=kept, source=source
        )

    return CrossLayerTranscoder({layer: layer_of(layer) for layer in range(len(weights["W_enc"]))}, tying)
