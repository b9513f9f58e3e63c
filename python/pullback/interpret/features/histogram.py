"""Histograms of a stream whose range is not known before, for many features at once."""

from __future__ import annotations

import torch
from torch import Tensor


class Histograms:
    """Counts of positive values in `bins` equal bins from 0 on, one histogram a feature.

    A value beyond the last bin doubles the width of that feature's bins as often as it takes, and neighbours are
    joined: counts stay exact. Values below 0 count in the first bin.

    Attributes:
        counts: (F, bins) int64.
        widths: (F), 0 where nothing was seen.
    """

    def __init__(self, n_features: int, bins: int) -> None:
        if bins < 2 or bins % 2:
            raise ValueError(f"histograms: bins must be even, so that neighbours can be joined, got {bins}")
        self.bins = bins
        self.counts = torch.zeros(n_features, bins, dtype=torch.int64)
        self.widths = torch.zeros(n_features, dtype=torch.float64)

    def add(self, features: Tensor, values: Tensor) -> None:
        """Values (n) of features (n)."""
        values = values.double().clamp(min=0)
        largest = torch.zeros_like(self.widths).scatter_reduce_(0, features, values, "amax")
        fresh = (self.widths == 0) & (largest > 0)
        # A power of two, so that it does not matter which value comes first.
        self.widths[fresh] = 2.0 ** torch.ceil(torch.log2(largest[fresh] / self.bins))
        while bool((narrow := largest >= self.widths * self.bins).logical_and_(self.widths > 0).any()):
            self._join(narrow)
        width = self.widths[features]
        at = torch.where(width > 0, values / width.clamp(min=torch.finfo(torch.float64).tiny), 0).long()
        places = features * self.bins + at.clamp(max=self.bins - 1)
        self.counts.view(-1).index_add_(0, places, torch.ones_like(places))

    def _join(self, which: Tensor) -> None:
        joined = self.counts[which].unflatten(1, (-1, 2)).sum(2)
        self.counts[which] = torch.cat([joined, torch.zeros_like(joined)], 1)
        self.widths[which] *= 2
