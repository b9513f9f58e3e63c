"""How much of what two layers are wired for is ever used (Ameisen et al. 2025; METHODS 1.10, 5.1)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pullback.attribution.weights.expected import ExpectedAttributions, PairWeights
from pullback.attribution.weights.wiring import Wiring
from pullback.ops import top_pullbacks
from pullback.transcoders import LayeredDictionary

BLOCK = 2**22  # entries of V held at a time


class Interference(NamedTuple):
    """Virtual weights of two layers beside what expected attributions make of them."""

    share: float
    """Of the sum of |V| over all pairs: what lies on pairs that never met on a token."""
    rank_correlation: float
    """Spearman's, of |V| and |TWERA| over the pairs that met; nan for fewer than two."""
    top_overlap: float
    """Mean over target features that ever fired: which part of their k sources of largest |V| is also among their k of
    largest |TWERA|."""
    met: int
    """Pairs that met."""
    pairs: int
    """Pairs there are."""


@torch.no_grad()
def interference(
    model: Any, sets: LayeredDictionary, expected: ExpectedAttributions, source: int, target: int, k: int = 20
) -> Interference:
    """How far the virtual weights of two layers are from what is used on the tokens that `expected` has counted.

    V is formed a block at a time for its sum; nothing of size F x F is held.

    Raises ValueError for layers that were not counted, transcoders of another model, or k under 1.
    """
    if k < 1:
        raise ValueError(f"interference: k must be at least 1, got {k}")
    wiring = Wiring(model, sets)
    weights = expected.weights(model, sets, source, target)
    written = wiring.as_read(target, wiring.writes(source, target))
    W_enc = wiring.sets[target].W_enc.detach().to(written.dtype)
    step = max(1, BLOCK // len(written))
    whole = sum(float((rows @ written.T).abs().sum(dtype=torch.float64)) for rows in W_enc.split(step))
    used = float(weights.virtual.abs().sum())
    fired = expected.sums[source, target].sums_b.nonzero()[:, 0]
    k = min(k, len(written))
    return Interference(
        share=max(0.0, 1 - used / whole) if whole else 0.0,
        rank_correlation=spearman(weights.virtual.abs(), weights.twera.abs()),
        top_overlap=_overlap(
            weights, top_pullbacks(W_enc[fired.to(W_enc.device)], written, k, absolute=True)[1], fired, k
        ),
        met=len(weights.indices),
        pairs=len(written) * len(W_enc),
    )


def _overlap(weights: PairWeights, largest: Tensor, fired: Tensor, k: int) -> float:
    """largest (r, k): source ids of largest |V| into each feature that fired (r)."""
    if not len(fired):
        return float("nan")
    i, j, size = weights.rows(), weights.indices.long(), weights.twera.abs()
    order = size.argsort(descending=True, stable=True)
    order = order[j[order].argsort(stable=True)]  # by target, the largest first
    first = torch.searchsorted(j[order], j[order])
    kept = order[(torch.arange(len(order)) - first < k) & (size[order] > 0)]
    F = len(weights.indptr)
    used = j[kept] * F + i[kept]
    wired = fired[:, None] * F + largest.cpu().long()
    return float(torch.isin(wired, used).double().sum(1).div(k).mean())


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation of two vectors (n), ties at their mean rank; nan where there is none."""
    ranks = torch.stack([_ranks(a), _ranks(b)])
    return float(torch.corrcoef(ranks)[0, 1]) if len(a) > 1 else float("nan")


def _ranks(values: Tensor) -> Tensor:
    _, which, counts = values.unique(return_inverse=True, return_counts=True)
    end = counts.cumsum(0).double()
    return (end - (counts.double() - 1) / 2)[which]
