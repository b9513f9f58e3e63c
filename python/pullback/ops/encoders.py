"""The encoders whose rows have no fixed number of features: threshold rules and BatchTopK.

As with `topk_encode`, pre-activations on a CPU are exact: accumulated in float64 and rounded once, so that the features
found do not depend on the GEMM, the threads or the instruction set. Neither is differentiable.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _encoder, arguments
from .cpu.encoders import Factor
from .screen import Screen
from .sparse import SparseActivations


@torch.no_grad()
def threshold_encode(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, theta: Tensor | float = 0.0, screen: Screen | None = None
) -> SparseActivations:
    """The entries of x @ W_enc.T + b_enc above theta: ReLU at 0, JumpReLU at one theta or one a feature.

    NaN is above every threshold, so that it surfaces; a zero is never stored, also where theta is negative.

    Args:
        x: Float[Tensor, "n d_in"].
        W_enc: Float[Tensor, "F d_in"].
        b_enc: Float[Tensor, "F"].
        theta: a number, or Float[Tensor, "F"].
        screen: as in `topk_encode`.

    Returns:
        n rows over F features.

    Raises:
        ValueError: shapes that do not fit, or a screen of earlier weights.
    """
    x, W_enc, b_enc = arguments.encoder_arguments("threshold_encode", x, W_enc, b_enc)
    F = len(W_enc)
    thetas = torch.as_tensor(theta, dtype=x.dtype, device=x.device)
    if thetas.shape not in ((), (1,), (F,)):
        raise ValueError(f"threshold_encode: theta must be a number or [F]=[{F}], got {list(thetas.shape)}")
    shadow = _shadow("threshold_encode", screen, x, W_enc)
    return _encoder.threshold_encode(x, W_enc, b_enc, thetas.expand(F).contiguous(), shadow)


@torch.no_grad()
def batch_topk_encode(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, screen: Screen | None = None
) -> SparseActivations:
    """The k * n largest positive entries of x @ W_enc.T + b_enc over all n rows together (BatchTopK, arXiv 2412.06410).

    Ties go to the lower (row, id). A NaN counts as larger than everything.

    Args:
        x: Float[Tensor, "n d_in"].
        W_enc: Float[Tensor, "F d_in"].
        b_enc: Float[Tensor, "F"].
        k: features a row on average, at least 1.
        screen: as in `topk_encode`.

    Returns:
        n rows over F features.

    Raises:
        ValueError: shapes that do not fit, a wrong k, or a screen of earlier weights.
    """
    x, W_enc, b_enc = arguments.encoder_arguments("batch_topk_encode", x, W_enc, b_enc)
    if k < 1:
        raise ValueError(f"batch_topk_encode: k must be at least 1, got {k}")
    shadow = _shadow("batch_topk_encode", screen, x, W_enc)
    return _encoder.batch_topk_encode(x, W_enc, b_enc, min(k, len(W_enc)), shadow)


def _shadow(op: str, screen: Screen | None, x: Tensor, W_enc: Tensor) -> Factor | None:
    if screen is None or not _encoder.screens(x):
        return None
    screen.must_follow(op, W_enc)
    return Factor(screen.W16, screen.norms, screen.rests)
