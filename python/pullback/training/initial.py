"""Where weights start: at random, and, of the biases, from the first batch."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.ops import on_huge_pages
from pullback.transcoders import Activation, JumpReLU

FEATURES_AT_ONCE = 1024
MEDIAN_STEPS = 100


def initial_weights(
    d_in: int, d_out: int, d_sae: int, decoder_norm: bool, decoder_init: str, seed: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """W_enc (F, d_in) with random unit rows, and W_dec (F, d_out) as `Recipe.decoder_init` says; of unit norm where
    `decoder_norm` will keep it."""
    # On the CPU whatever the device, so that one seed gives one set of weights everywhere.
    random = torch.Generator().manual_seed(seed)

    def fresh(d: int) -> Tensor:
        return on_huge_pages(torch.empty(d_sae, d, dtype=dtype, device="cpu"))

    def unit_rows(d: int) -> Tensor:
        rows = fresh(d).normal_(generator=random)
        return rows.div_(rows.norm(dim=1, keepdim=True))

    W_enc = unit_rows(d_in)
    if d_in == d_out and (decoder_norm or decoder_init == "tied"):
        return W_enc, fresh(d_out).copy_(W_enc)
    if decoder_norm:
        return W_enc, unit_rows(d_out)
    if d_in == d_out and decoder_init == "tenth":
        return W_enc, torch.mul(W_enc, 0.1, out=fresh(d_out))
    return W_enc, fresh(d_out).zero_()


def initial_rule(activation: Activation, d_sae: int, dtype: torch.dtype) -> Activation:
    """The activation that the weights start with: of a JumpReLU, one theta a feature."""
    if not isinstance(activation, JumpReLU):
        return activation
    theta = torch.as_tensor(activation.theta, dtype=dtype, device="cpu")
    return JumpReLU(theta.expand(d_sae).clone() if theta.ndim == 0 else theta)


def center(rows: Tensor, method: str) -> Tensor:
    """Float[Tensor, "d"] of rows Float[Tensor, "n d"]: their "mean", "geometric_median", or "zeros"."""
    if method == "zeros":
        return rows.new_zeros(rows.shape[1])
    middle = rows.mean(0)
    if method == "geometric_median":
        # Weiszfeld's iteration: the mean of all rows, each weighted by one over its distance.
        nearest = 1e-6 * (rows - middle).norm(dim=1).mean() + torch.finfo(rows.dtype).tiny
        for _ in range(MEDIAN_STEPS):
            weights = 1 / torch.maximum((rows - middle).norm(dim=1), nearest)
            middle = (weights / weights.sum()) @ rows
    return middle


def rare_bias(x: Tensor, W_enc: Tensor, theta: Tensor, share: float) -> Tensor:
    """Float[Tensor, "F"]: the b_enc with which every feature is above theta Float[Tensor, "F"] on a share of the rows x
    Float[Tensor, "n d_in"]."""
    rank = min(len(x), max(1, len(x) - round(share * len(x))))
    parts = W_enc.split(FEATURES_AT_ONCE)
    return theta - torch.cat([(part @ x.T).kthvalue(rank, dim=1).values for part in parts])
