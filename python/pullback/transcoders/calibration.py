"""Thresholds in the place of a top-k, for tools that know only JumpReLU.

A top-k looks at all features of a row to keep one of them; a threshold looks at that feature alone. So the two agree on
given inputs only on average: each feature gets the threshold above which it is active on as many of these inputs as it
was under the top-k.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.transcoders.activations import BatchTopK, JumpReLU, ReLU, TopK
from pullback.transcoders.features import FeatureLayer
from pullback.transcoders.layered import Layer

BLOCK_BYTES = 1 << 27


@torch.no_grad()
def calibrate_thresholds(transcoder: FeatureLayer, x: Tensor) -> Tensor:
    """Float[Tensor, 'F']: theta_i, halfway between the n_i-th and the next largest positive pre-activation of feature
    i on `x`, where n_i counts the rows in which the top-k keeps it (ties above the threshold count together). A feature
    that it never keeps gets a threshold above everything seen.

    Args:
        transcoder: with TopK or BatchTopK.
        x: Float[Tensor, '... d_in'], inputs the dictionary meets in use; some hundred rows a feature's firing are
            enough, few make thresholds of rare features loose.

    Raises:
        ValueError: no inputs, not finite, or of another width.
    """
    rows = x.reshape(-1, x.shape[-1])
    if not len(rows) or not bool(rows.isfinite().all()):
        raise ValueError(f"calibrate: needs at least one row of finite inputs, got {list(x.shape)}")
    kept = transcoder.encode(rows)
    counts = torch.bincount(kept.indices[kept.values > 0].long(), minlength=transcoder.d_sae)
    rows = rows.to(device=transcoder.device, dtype=kept.dtype)
    theta = torch.empty(transcoder.d_sae, dtype=kept.dtype, device=transcoder.device)
    step = max(1, BLOCK_BYTES // (8 * len(rows)))
    for start in range(0, transcoder.d_sae, step):
        block = slice(start, start + step)
        W_enc, b_enc = (weight[block].to(kept.dtype) for weight in (transcoder.W_enc, transcoder.b_enc))
        theta[block] = _between(rows @ W_enc.T + b_enc, counts[block])
    return theta


def _between(h: Tensor, counts: Tensor) -> Tensor:
    """h Float[Tensor, 'n F'], counts Int[Tensor, 'F'] -> Float[Tensor, 'F']"""
    ranked = h.clamp(min=0).sort(dim=0, descending=True).values
    padded = torch.cat([2 * ranked[:1] + 1, ranked, torch.zeros_like(ranked[:1])])
    last_kept, first_cut = padded.gather(0, counts[None])[0], padded.gather(0, counts[None] + 1)[0]
    middle = (last_kept + first_cut) / 2
    return torch.where(middle < last_kept, middle, first_cut)  # neighbouring floats have no middle


def to_jumprelu(transcoder: Layer, x: Tensor | None = None) -> Layer:
    """The same features with thresholds: exact for ReLU, JumpReLU and a BatchTopK that has its threshold; for a top-k
    calibrated on inputs `x` Float[Tensor, '... d_in'].

    Raises:
        ValueError: a top-k without inputs, or one that keeps negative values, which no threshold of its own can.
    """
    activation = transcoder.activation
    if isinstance(activation, ReLU | JumpReLU):
        return transcoder
    if isinstance(activation, BatchTopK) and activation.threshold is not None:
        theta = torch.full_like(transcoder.b_enc, activation.threshold)
    elif x is None:
        raise ValueError(
            f"{activation!r} becomes thresholds only by calibration on inputs of this layer: pass "
            "calibrate={layer: inputs [n, d_in]}"
        )
    elif isinstance(activation, TopK) and not activation.relu and activation.k > transcoder.d_sae // 2:
        raise ValueError(f"{activation!r} keeps negative features for most inputs; thresholds cannot stand in for it")
    else:
        theta = calibrate_thresholds(transcoder, x)
    return type(transcoder)(
        transcoder.W_enc,
        transcoder.b_enc,
        transcoder.W_dec,
        transcoder.b_dec,
        transcoder.W_skip,
        activation=JumpReLU(theta),
        hook_in=transcoder.hook_in,
        hook_out=transcoder.hook_out,
        reading=transcoder.reading,
    )
