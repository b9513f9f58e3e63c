"""The losses of a training step with their sparse gradients: reconstruction and AuxK."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pullback.ops import SparseGradient, decode_residual, feature_order, topk_encode, topk_select
from pullback.transcoders import Transcoder

# Dead features encoded at a time: their rows are copied together, and a copy of all could be as large as the encoder.
DEAD_AT_ONCE = 4096


class Reconstruction(NamedTuple):
    """Top-k features of n rows against a target, as `decode_residual` gives it."""

    values: Tensor
    """Float[Tensor, "n k"]"""
    indices: Tensor
    """Int32[Tensor, "n k"]"""
    residual: Tensor
    """Float[Tensor, "n d_out"], reconstruction minus target"""
    dots: Tensor
    """Float[Tensor, "n k"]: derivative of half the squared residual by the values"""
    square: Tensor
    """Float64[Tensor, ""]: the squared residual, summed"""

    @classmethod
    def of(
        cls, values: Tensor, indices: Tensor, W_dec: Tensor, b_dec: Tensor | None, target: Tensor, relu: bool
    ) -> Reconstruction:
        residual, dots, losses = decode_residual(values, indices, W_dec, b_dec, target, relu)
        return cls(values, indices, residual, dots, losses.sum())


def sparse_gradient(x: Tensor, parts: list[tuple[Reconstruction, Tensor]], n_features: int) -> SparseGradient:
    """The gradient of sum weight / 2 ||residual||^2 over pairs (reconstruction of rows x, weight).

    The weight goes into the entries, not into the residuals, which are far larger.
    """
    n = len(x)
    rows = torch.arange(n * len(parts), dtype=torch.int32, device=x.device).view(-1, n, 1)

    def joined(tensors: list[Tensor]) -> Tensor:
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)

    starts, order = feature_order(joined([part.indices.flatten() for part, _ in parts]), n_features)
    return SparseGradient(
        starts,
        order,
        rows=joined([rows[i].expand_as(part.indices).flatten() for i, (part, _) in enumerate(parts)]),
        dvalues=joined([(part.dots * weight.to(x.dtype)).flatten() for part, weight in parts]),
        values=joined([(part.values * weight.to(x.dtype)).flatten() for part, weight in parts]),
        x=x,
        g=joined([part.residual for part, _ in parts]),
    )


def auxk_reconstruction(transcoder: Transcoder, x: Tensor, residual: Tensor, dead: Tensor, k: int) -> Reconstruction:
    """The top k of the dead features against what the living ones left over, without b_dec.

    Args:
        x: Float[Tensor, "n d_in"].
        residual: Float[Tensor, "n d_out"], reconstruction minus target.
        dead: Int64[Tensor, "n_dead"], n_dead >= k.
    """
    values, places = _encode_rows(transcoder, x, dead, k)
    return Reconstruction.of(values, dead[places.long()].int(), transcoder.W_dec, None, -residual, relu=True)


def _encode_rows(transcoder: Transcoder, x: Tensor, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of the features, as places in `features`: the top k of the top k of every chunk."""
    chunks = []
    # A GPU has more memory to spare than time for many small kernels.
    at_once = DEAD_AT_ONCE if x.is_cpu else 8 * DEAD_AT_ONCE
    for start in range(0, len(features), at_once):
        ids = features[start : start + at_once]
        values, places = topk_encode(x, transcoder.W_enc[ids], transcoder.b_enc[ids], min(k, len(ids)))
        chunks.append((values, places + start))
    if len(chunks) == 1:
        return chunks[0]
    values, places = (torch.cat(parts, dim=1) for parts in zip(*chunks, strict=True))
    values, best = topk_select(values, k)
    return values, places.gather(1, best.long())
