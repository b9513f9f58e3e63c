"""From weights in our orientation to a transcoder, and from dictionaries found to a set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from pullback.transcoders.activations import Activation, JumpReLU
from pullback.transcoders.features import FeatureLayer
from pullback.transcoders.formats.files import read_safetensors
from pullback.transcoders.lazy import BLOCK_BYTES, MappedRows, map_safetensors, place_of, read_here_and_there
from pullback.transcoders.reading import ModelReading
from pullback.transcoders.transcoder import Transcoder

Layer = TypeVar("Layer", bound=FeatureLayer)
NOT_LAZY = "load it without lazy=, or convert it once: pullback convert SRC DST --to pullback"


@dataclass(frozen=True)
class Options:
    """What a caller says about files that do not say it themselves; see `load_transcoders`."""

    dtype: torch.dtype | None = None
    device: torch.device | str = "cpu"
    layer: int | None = None
    hook_in: str | None = None
    hook_out: str | None = None
    activation: Activation | None = None
    subtract_b_dec: bool | None = None
    lazy: frozenset[str] = frozenset()

    def read(self, file: Path) -> dict[str, Tensor]:
        """The tensors of a safetensors file, for `build_layer` to copy or to leave where they are."""
        return map_safetensors(file) if self.lazy else read_safetensors(file)


def build_layer(
    layer_type: type[Layer],
    weights: Mapping[str, Tensor],
    *,
    activation: Activation | None,
    hook_in: str,
    hook_out: str,
    options: Options,
    source: str | os.PathLike[str],
    reading: ModelReading | None = None,
) -> Layer:
    """The features of one layer from weights in our orientation.

    An input bias `b_in` is folded: act((x - b_in) W_enc^T + b_enc) has the encoder bias b_enc - W_enc b_in, computed in
    float64. Thresholds `theta` make a JumpReLU where `activation` is None; `options` overrule hooks and activation.

    Raises: ValueError of the layer's type, naming `source`.
    """
    dtype = options.dtype
    if dtype is None:
        stored = weights["W_enc"].dtype
        dtype = torch.float32 if stored in (torch.bfloat16, torch.float16) else stored
    # Copies, since tensors inside a file's buffer are not aligned, and a GEMM may round differently on unaligned rows.
    own: dict[str, Any] = {
        name: tensor.to(device=options.device, dtype=dtype, copy=True, memory_format=torch.contiguous_format)
        for name, tensor in weights.items()
        if name not in options.lazy
    }
    own |= {name: _left_there(weights[name], name, dtype, options, source) for name in options.lazy}
    theta, b_in = own.pop("theta", None), own.pop("b_in", None)
    if b_in is not None:
        own["b_enc"] = _folded(own["b_enc"], own["W_enc"], b_in)
    activation = options.activation or activation or (None if theta is None else JumpReLU(theta))
    if activation is None:
        raise ValueError(f"{source}: the file does not say which activation it was trained with; pass activation=...")
    try:
        return layer_type(
            **own,
            activation=activation,
            hook_in=options.hook_in or hook_in,
            hook_out=options.hook_out or hook_out,
            reading=reading,
        )
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _left_there(
    weight: Tensor, name: str, dtype: torch.dtype, options: Options, source: str | os.PathLike[str]
) -> MappedRows:
    if place_of(weight) is None:
        raise ValueError(f"{source}: {name} is not read as it lies in the file, so it cannot stay there; {NOT_LAZY}")
    if name == "W_dec":
        read_here_and_there(weight)
    return MappedRows(weight, dtype, options.device)


def _folded(b_enc: Tensor, W_enc: Tensor | MappedRows, b_in: Tensor) -> Tensor:
    """b_enc - W_enc b_in in float64, a block of features at a time."""
    step = max(1, BLOCK_BYTES // (8 * W_enc.shape[1]))
    blocks = (W_enc[start : start + step] for start in range(0, len(W_enc), step))
    return (b_enc.double() - torch.cat([W.double() @ b_in.double() for W in blocks])).to(b_enc.dtype)


build = partial(build_layer, Transcoder)
"""A transcoder; see `build_layer`."""


def relu_then_threshold(theta: Tensor) -> Tensor:
    """Thresholds of h * (h > theta) that equal relu(h) * (h > threshold): negative ones act as 0."""
    return theta.clamp(min=0)


def one_per_layer(found: list[tuple[int, Any]], where: str | os.PathLike[str]) -> dict[int, Any]:
    """{layer: what was found}, refusing two of one layer with a ValueError that names them."""
    layers: dict[int, Any] = {}
    for layer, item in found:
        if layer in layers:
            raise ValueError(
                f"{where}: layer {layer} has two dictionaries, {layers[layer]} and {item}; name one of them"
            )
        layers[layer] = item
    return dict(sorted(layers.items()))


def in_block(hook: str, source: str | os.PathLike[str]) -> tuple[int, str]:
    """ "blocks.3.mlp.hook_in" -> (3, "mlp.hook_in"). Raises ValueError for anything else."""
    start, _, rest = hook.partition(".")
    number, _, name = rest.partition(".")
    if start != "blocks" or not number.isdigit() or not name:
        raise ValueError(
            f'{source}: hook "{hook}" is not inside a block; pass layer=, hook_in= and hook_out= '
            '(names inside the block, like "mlp.hook_in")'
        )
    return int(number), name
