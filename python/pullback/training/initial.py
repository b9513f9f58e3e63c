"""Where weights start: at random, and, of the biases, from the first batch."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import torch
from torch import Tensor

from pullback.ops import on_huge_pages
from pullback.transcoders import Activation, BatchTopK, JumpReLU, TopK

FEATURES_AT_ONCE = 1024
MEDIAN_STEPS = 100


def initial_weights(
    d_in: int,
    d_out: int,
    d_sae: int,
    decoder_norm: bool,
    decoder_init: str,
    seed: int,
    dtype: torch.dtype,
    held: slice | None = None,
) -> tuple[Tensor, Tensor]:
    """W_enc (F, d_in) with random unit rows, and W_dec (F, d_out) as `Recipe.decoder_init` says; of unit norm where
    `decoder_norm` will keep it. Of the d_sae features there are, those `held`; None for all."""
    # On the CPU whatever the device, so that one seed gives one set of weights everywhere.
    random = torch.Generator().manual_seed(seed)
    held = held or slice(0, d_sae)

    def fresh(d: int) -> Tensor:
        return on_huge_pages(torch.empty(held.stop - held.start, d, dtype=dtype, device="cpu"))

    def unit_rows(d: int) -> Tensor:
        rows = _drawn(fresh(d), d_sae, held, random)
        return rows.div_(rows.norm(dim=1, keepdim=True))

    W_enc = unit_rows(d_in)
    if d_in == d_out and (decoder_norm or decoder_init == "tied"):
        return W_enc, fresh(d_out).copy_(W_enc)
    if decoder_norm:
        return W_enc, unit_rows(d_out)
    if d_in == d_out and decoder_init == "tenth":
        return W_enc, torch.mul(W_enc, 0.1, out=fresh(d_out))
    return W_enc, fresh(d_out).zero_()


def _drawn(rows: Tensor, d_sae: int, held: slice, random: torch.Generator) -> Tensor:
    """Those `held` of d_sae normal rows, as they are where all are drawn at once."""
    if len(rows) == d_sae:
        return rows.normal_(generator=random)
    # Chunks of a multiple of 16 numbers, and a last one of at least 16, draw what one call draws.
    cuts = [*range(0, max(1, d_sae - FEATURES_AT_ONCE), FEATURES_AT_ONCE), d_sae]
    for start, stop in pairwise(cuts):
        chunk = rows.new_empty(stop - start, rows.shape[1]).normal_(generator=random)
        first, last = max(start, held.start), min(stop, held.stop)
        if first < last:
            rows[first - held.start : last - held.start] = chunk[first - start : last - start]
    return rows


def initial_rule(activation: Activation, d_sae: int, held: slice, dtype: torch.dtype) -> Activation:
    """What the features `held`, of d_sae, start with: of a JumpReLU, one theta a feature."""
    n = held.stop - held.start
    if isinstance(activation, JumpReLU):
        theta = torch.as_tensor(activation.theta, dtype=dtype, device="cpu")
        return JumpReLU((theta.expand(d_sae) if theta.ndim == 0 else theta)[held].clone())
    if isinstance(activation, TopK | BatchTopK) and n < d_sae:  # k may exceed what is held here
        return dataclasses.replace(activation, k=min(activation.k, n))
    return activation


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
