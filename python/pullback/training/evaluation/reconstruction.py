"""Reconstruction of each layer, on inputs from the unchanged model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pullback.ops import SparseActivations
from pullback.training.evaluation.report import DENSITY_LOG10_EDGES
from pullback.transcoders import LayeredDictionary

Pair = tuple[Tensor, Tensor]


class LayerSums:
    """Running sums over the scored tokens of one layer of a dictionary with F features there."""

    def __init__(self, n_features: int, device: torch.device) -> None:
        self.targets, self.residuals = _Moments(), _Moments()
        self.squared_error = 0.0
        self.cosines = 0.0
        self.fired = torch.zeros(n_features, dtype=torch.long, device=device)

    def add(self, acts: SparseActivations, y: Tensor, y_hat: Tensor) -> None:
        target = y.to(y_hat.device).double()
        residual = target - y_hat.double()
        self.targets.add(target)
        self.residuals.add(residual)
        self.squared_error += float(residual.square().sum())
        self.cosines += float(torch.cosine_similarity(target, y_hat.double(), dim=-1).sum())
        self.fired += torch.bincount(acts.indices.long(), minlength=len(self.fired))

    @property
    def n(self) -> int:
        return self.targets.n

    @property
    def mean(self) -> Tensor:
        """Float64[Tensor, 'd'], of the targets."""
        return torch.as_tensor(self.targets.mean)

    def figures(self) -> dict[str, Any]:
        """By the names that `Report` gives them."""
        return {
            "l0": int(self.fired.sum()) / self.n,
            "fvu": _ratio(self.squared_error, self.targets.scatter),
            "cosine": self.cosines / self.n,
            "explained_variance": 1 - _ratio(self.residuals.scatter, self.targets.scatter),
            "dead": float((self.fired == 0).double().mean()),
            "density": self._density(),
        }

    def _density(self) -> list[int]:
        edges = torch.tensor(DENSITY_LOG10_EDGES, dtype=torch.float64)
        share = self.fired[self.fired > 0].cpu().double() / self.n
        place = torch.bucketize(share.log10(), edges, right=True) - 1
        n_bins = len(edges) - 1
        return torch.bincount(place.clamp(0, n_bins - 1), minlength=n_bins).tolist()


def sums_of(sets: LayeredDictionary) -> dict[int, LayerSums]:
    """Empty sums of every layer."""
    return {layer: LayerSums(len(bias := sets.b_enc(layer)), bias.device) for layer in sets.layers}


def add_batch(sums: Mapping[int, LayerSums], sets: LayeredDictionary, io: Mapping[int, Pair], scored: Tensor) -> None:
    """Add inputs and targets {layer: (x, y)}, each (B, T, d), where `scored` (B, T) is true."""
    rows = {layer: (x[scored.to(x.device)], y[scored.to(y.device)]) for layer, (x, y) in io.items()}
    acts = {layer: sets.encode(layer, x) for layer, (x, _) in rows.items()}
    for layer, (x, y) in rows.items():
        sums[layer].add(acts[layer], y, sets.reconstruct(layer, acts, x))


class _Moments:
    """Mean and summed squared deviation of rows, in float64, by the pairwise update of Chan, Golub and LeVeque."""

    def __init__(self) -> None:
        self.n = 0
        self.mean: Tensor | float = 0.0
        self.scatter = 0.0

    def add(self, rows: Tensor) -> None:
        mean, n = rows.mean(0), len(rows)
        shift = mean - self.mean
        self.scatter += float((rows - mean).square().sum() + shift.square().sum() * (self.n * n / (self.n + n)))
        self.mean = self.mean + shift * (n / (self.n + n))
        self.n += n


def _ratio(part: float, whole: float) -> float:
    """part / whole; targets that do not vary are explained perfectly by an exact output and not at all by any other."""
    if whole > 0:
        return part / whole
    return 0.0 if part == 0 else float("inf")
