"""Statistics that more than one room needs."""

from __future__ import annotations

import torch
from torch import Tensor


def between_group_share(values: Tensor, groups: Tensor) -> Tensor:
    """Share of each column's variance that lies between groups (eta squared): (n, F), (n) -> (F).

    A constant column has none: 0. Raises ValueError unless there is one group for each row.
    """
    if values.ndim != 2 or groups.shape != values.shape[:1] or not len(groups):
        raise ValueError(
            f"between_group_share: values (n, F) need groups (n), got {list(values.shape)} and {list(groups.shape)}"
        )
    shifted = values - values[:1]  # a constant column becomes exactly 0, whatever its mean rounds to
    centred = shifted - shifted.mean(0)
    total = centred.pow(2).sum(0)
    between = torch.zeros_like(total)
    for group in groups.unique():
        member = groups == group
        between += member.sum() * centred[member].mean(0).pow(2)
    return torch.where(total > 0, between / total.clamp(min=torch.finfo(total.dtype).tiny), torch.zeros_like(total))


def ranks(values: Tensor) -> Tensor:
    """Rank of each of n values from the least, 0 .. n - 1, ties sharing their mean rank: (n) -> (n) float64."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double() - 1
    return (last - (counts.double() - 1) / 2)[place]


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation of two vectors (n); nan where one of them is constant.

    Raises ValueError for vectors of different lengths, or none.
    """
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError(f"spearman: needs two vectors of one length, got {list(a.shape)} and {list(b.shape)}")
    x, y = (r - r.mean() for r in (ranks(a), ranks(b)))
    return float((x * y).sum() / (x.square().sum() * y.square().sum()).sqrt())
