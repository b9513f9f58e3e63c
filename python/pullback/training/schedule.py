"""The learning rate on its way through a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

# As SAELens spells one of them.
SYNONYMS = {"cosineannealing": "cosine"}
SCHEDULERS = ("linear", "cosine", "constant")


@dataclass(frozen=True)
class Schedule:
    """A linear rise from 0, a plateau, and a fall.

    Args:
        name: "linear" or "cosine", the shape of the fall; "constant" for none.
        n_steps: of the whole run.
        peak: the rate of the plateau.
        end: the rate behind the last step; None for 0, or for a tenth of the peak where the fall is a cosine.
        warm_up: steps of the rise; at most half of the run's.
        fall: last steps, over which the rate falls; None for all behind the rise.
    """

    name: str
    n_steps: int
    peak: float
    end: float | None = None
    warm_up: int = 0
    fall: int | None = None

    def at(self, step: int) -> float:
        """The rate of step 0, 1, ..."""
        warm_up = min(self.warm_up, self.n_steps // 2)
        rise = (step + 1) / warm_up if warm_up else 1.0
        if self.name == "constant":
            return self.peak * min(1.0, rise)
        fall = min(self.fall or self.n_steps, self.n_steps - warm_up)
        left = min(1.0, (self.n_steps - step) / fall)
        if self.name == "cosine":
            left = (1 - math.cos(math.pi * left)) / 2
        return self.peak * min(rise, self._end + (1 - self._end) * left)

    @property
    def _end(self) -> float:
        """As a share of the peak."""
        if self.end is None:
            return 0.1 if self.name == "cosine" else 0.0
        return self.end / self.peak
