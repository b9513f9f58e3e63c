"""Plain torch for what attribution asks of all features at once, through dense matrices: more of `reference`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sparse import SparseActivations


def top_pullbacks(
    v: Tensor, W_dec: Tensor, k: int, scale: Tensor | SparseActivations | None, absolute: bool
) -> tuple[Tensor, Tensor]:
    """The k features with the largest scale * <W_dec, v> of every row of v, by a stable sort of all."""
    h = v @ W_dec.T
    active = torch.ones_like(h, dtype=torch.bool)
    if isinstance(scale, SparseActivations):
        h = h * scale.to_dense()
        active = torch.zeros_like(active).index_put((scale.rows(), scale.indices.long()), active.new_ones(()))
    elif scale is not None:
        h = h * scale
    key = (h.abs() if absolute else h).masked_fill(~active, -torch.inf)
    # A feature that does not count comes after one that counts with -inf.
    order = active.long().argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, key.gather(1, order).argsort(dim=1, descending=True, stable=True))[:, :k]
    found = active.gather(1, order)
    return torch.where(found, h.gather(1, order), 0), torch.where(found, order, -1).int()


def coactivation(a: SparseActivations, b: SparseActivations) -> tuple[Tensor, Tensor, Tensor]:
    """Float64[Tensor, "F_a F_b"] sums of a_i b_j and of a_i where b_j > 0; and Bool, which pairs have met."""
    A, B = a.to_dense().double(), b.to_dense().double()

    def entries(acts: SparseActivations) -> Tensor:
        stored = SparseActivations(acts.indptr, acts.indices, torch.ones_like(acts.values), acts.n_features)
        return stored.to_dense().double()

    return A.T @ B, A.T @ (B > 0).double(), entries(a).T @ entries(b) > 0
