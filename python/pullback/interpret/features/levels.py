"""Examples at every strength: a stream's contexts in bands of equal width, though the largest activation is known last.

Every feature has fixed levels of strength, eight to a doubling, with a uniform sample of contexts in each. A band takes
from the levels that it touches what falls into it, so its examples are a uniform sample of the band, but for the two
levels that its ends cut.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.interpret.features.best import Best, Examples, Kept

PER_OCTAVE = 8
LEAST = -16  # log2 of the activation that ends the lowest level
LEVELS = 32 * PER_OCTAVE


class Levels:
    """n examples of each level of each of F features: F * LEVELS * n * (28 + 4 * window) bytes.

    Attributes:
        best: the examples, those of level l of feature f in row f * LEVELS + l.
    """

    def __init__(self, n_features: int, n: int, window: int) -> None:
        self.n = n
        self.best = Best(n_features * LEVELS, n, window)

    def placed(self, examples: Examples) -> Examples:
        """Under the rows of `best`."""
        return examples._replace(features=examples.features * LEVELS + _level(examples.values))

    def band(self, feature: int, low: float, high: float) -> Kept:
        """Up to n of the contexts whose strongest activation x has low < x <= high."""
        first, last = _level(torch.tensor([low, high]).clamp(min=2.0**LEAST)).tolist()
        kept = self.best.kept(slice(feature * LEVELS + first, feature * LEVELS + last + 1))
        kept = kept.take(((kept.values > low) & (kept.values <= high)).nonzero()[:, 0])
        return kept.take(torch.argsort(kept.ranks, descending=True)[: self.n])


def _level(values: Tensor) -> Tensor:
    octaves = torch.log2(values.clamp(min=2.0**LEAST)) - LEAST
    return (octaves * PER_OCTAVE).long().clamp(max=LEVELS - 1)
