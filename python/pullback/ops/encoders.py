"""The encoders whose rows have no fixed number of features: threshold rules and BatchTopK.

As with `topk_encode`, pre-activations on a CPU are exact: accumulated in float64 and rounded once, so that the features
found do not depend on the GEMM, the threads or the instruction set. Neither is differentiable.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _encoder, arguments
from .sparse import SparseActivations


@torch.no_grad()
def threshold_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, theta: Tensor | float = 0.0) -> SparseActivations:
    """The entries of x @ W_enc.T + b_enc above theta: ReLU at 0, JumpReLU at one theta or one a feature.

    NaN is above every threshold, so that it surfaces; a zero is never stored, also where theta is negative.

    Args:
        x: Float[Tensor, "n d_in"].
        W_enc: Float[Tensor, "F d_in"].
        b_enc: Float[Tensor, "F"].
        theta: a number, or Float[Tensor, "F"].

    Returns:
        n rows over F features.

    Raises:
        ValueError: shapes that do not fit.
    """
    x, W_enc, b_enc = arguments.encoder_arguments("threshold_encode", x, W_enc, b_enc)
    F = len(W_enc)
    thetas = torch.as_tensor(theta, dtype=x.dtype, device=x.device)
    if thetas.shape not in ((), (1,), (F,)):
        raise ValueError(f"threshold_encode: theta must be a number or [F]=[{F}], got {list(thetas.shape)}")
    return _encoder.threshold_encode(x, W_enc, b_enc, thetas.expand(F).contiguous())


@torch.no_grad()
def batch_topk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> SparseActivations:
    """The k * n largest positive entries of x @ W_enc.T + b_enc over all n rows together (BatchTopK, arXiv 2412.06410).

    Ties go to the lower (row, id). A NaN counts as larger than everything.

    Args:
        x: Float[Tensor, "n d_in"].
        W_enc: Float[Tensor, "F d_in"].
        b_enc: Float[Tensor, "F"].
        k: features a row on average, at least 1.

    Returns:
        n rows over F features.

    Raises:
        ValueError: shapes that do not fit, or a wrong k.
    """
    x, W_enc, b_enc = arguments.encoder_arguments("batch_topk_encode", x, W_enc, b_enc)
    if k < 1:
        raise ValueError(f"batch_topk_encode: k must be at least 1, got {k}")
    return _encoder.batch_topk_encode(x, W_enc, b_enc, min(k, len(W_enc)))
