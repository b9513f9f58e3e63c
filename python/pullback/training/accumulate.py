"""One update from a batch that is worked through in parts.

The gradient of a part is a list of entries over its own rows, so that of the whole is all of these lists behind one
another: nothing dense is summed up. Losses are means over rows, which weighs a part by its share of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pullback.ops import SparseGradient, feature_order
from pullback.training.loss import Reconstruction, entry_features
from pullback.training.objective import StepStats
from pullback.training.optimizer import Gradient


class Found(NamedTuple):
    """What a loss has to say of n rows."""

    n: int
    loss: Tensor
    gradient: Gradient
    stats: StepStats
    values: Tensor
    """Float[Tensor, "nnz"]: of the entries, which say what fired"""
    features: Tensor
    """Int32[Tensor, "nnz"]"""

    @classmethod
    def of(cls, n: int, loss: Tensor, gradient: Gradient, stats: StepStats, made: Reconstruction) -> Found:
        return cls(n, loss, gradient, stats, made.values, made.features)


def together(parts: Sequence[Found], n_features: int) -> Found:
    """What the loss has to say of the rows of all parts."""
    if len(parts) == 1:
        return parts[0]
    n = sum(part.n for part in parts)
    shares = [part.n / n for part in parts]

    def mean(of: Sequence[Tensor]) -> Tensor:
        return torch.stack([share * each for share, each in zip(shares, of, strict=True)]).sum(0)

    first = parts[0].gradient
    dense = {name: mean([part.gradient.dense()[name] for part in parts]) for name in first.dense()}
    return Found(
        n,
        mean([part.loss for part in parts]),
        Gradient(
            _stacked([part.gradient.features for part in parts], shares, n_features),
            b_dec=dense["b_dec"],
            W_skip=dense.get("W_skip"),
            more={name: dense[name] for name in first.more},
        ),
        StepStats(*map(mean, zip(*(part.stats for part in parts), strict=True))),
        torch.cat([part.values for part in parts]),
        torch.cat([part.features for part in parts]),
    )


def _stacked(gradients: Sequence[SparseGradient], weights: Sequence[float], n_features: int) -> SparseGradient:
    """sum_i weights[i] gradients[i].

    Row r of a part's g belongs to row r % n of its x. The rows of all x lie behind one another, and so do those of g in
    as many layers of that height as the deepest part has.
    """
    depth = max(len(each.g) // len(each.x) for each in gradients)
    height = sum(len(each.x) for each in gradients)
    g = gradients[0].g.new_zeros(depth, height, gradients[0].g.shape[1])
    features, rows, above = [], [], 0
    for each in gradients:
        n = len(each.x)
        layers = each.g.view(-1, n, g.shape[2])
        g[: len(layers), above : above + n] = layers
        rows.append(each.rows // n * height + above + each.rows % n)
        features.append(entry_features(each))
        above += n
    starts, order = feature_order(torch.cat(features), n_features)
    return SparseGradient(
        starts,
        order,
        rows=torch.cat(rows),
        dvalues=torch.cat([each.dvalues * weight for each, weight in zip(gradients, weights, strict=True)]),
        values=torch.cat([each.values * weight for each, weight in zip(gradients, weights, strict=True)]),
        x=torch.cat([each.x for each in gradients]),
        g=g.flatten(0, 1),
    )
