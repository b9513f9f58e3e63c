"""What is gathered of the features of one layer."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.interpret.features.best import Best, Examples
from pullback.interpret.features.histogram import Histograms
from pullback.interpret.features.levels import Levels
from pullback.ops import SparseActivations

BINS = 64


class LayerActivity:
    """Statistics of F features over a stream of contexts, in memory that does not grow with it.

    Attributes:
        active: (F) int64, tokens at which a feature is active.
        smallest, largest: (F), of its activations.
        histograms: of its activations.
        top: the contexts in which it is strongest.
        sample: a uniform sample of the contexts in which it is active at all; by quantile, later.
        levels: a sample of `n_per_level` contexts at every level of strength, where that is asked for.
    """

    def __init__(
        self, n_features: int, n_top: int, n_sampled: int, window: tuple[int, int], n_per_level: int = 0
    ) -> None:
        self.window = window
        self.active = torch.zeros(n_features, dtype=torch.int64)
        self.smallest = torch.full((n_features,), torch.inf)
        self.largest = torch.full((n_features,), -torch.inf)
        self.histograms = Histograms(n_features, BINS)
        width = sum(window) + 1
        self.top = Best(n_features, n_top, width)
        self.sample = Best(n_features, n_sampled, width)
        self.levels = Levels(n_features, n_per_level, width) if n_per_level else None

    def referred(self) -> list[Tensor]:
        """Numbers of the contexts that examples are in."""
        kept = (self.top, self.sample, *([self.levels.best] if self.levels else []))
        return [best.contexts for best in kept]

    @staticmethod
    def nbytes(n_features: int, n_top: int, n_sampled: int, window: tuple[int, int]) -> int:
        kept = (n_top + n_sampled) * (28 + 4 * (sum(window) + 1))
        return n_features * (kept + 8 * BINS + 24)

    def add(self, acts: SparseActivations, counts: Tensor, first: int, generator: torch.Generator) -> None:
        """Activations of one batch of contexts: B * T rows, of which those count where `counts` Bool[Tensor, 'B T'] is
        true; the first context has the number `first`. Raises ValueError where one is NaN or infinite."""
        T = counts.shape[1]
        rows, features, values = acts.rows().cpu(), acts.indices.long().cpu(), acts.values.float().cpu()
        everywhere = rows * acts.n_features + features, values  # ascending, as rows and the features of a row are
        scored = counts.flatten().cpu()[rows]
        rows, features, values = rows[scored], features[scored], values[scored]
        if len(rows) == 0:
            return
        if not bool(values.isfinite().all()):
            token = int(rows[~values.isfinite()][0])
            raise ValueError(
                f"feature cards: an activation in context {first + token // T} at position {token % T} is NaN or "
                "infinite; leave out the prompt that makes the model overflow"
            )
        self.active.index_add_(0, features, torch.ones_like(features))
        self.smallest.scatter_reduce_(0, features, values, "amin")
        self.largest.scatter_reduce_(0, features, values, "amax")
        self.histograms.add(features, values)
        examples = strongest(features, rows // T, rows % T, values)
        lottery = torch.rand(len(examples.values), generator=generator)
        numbered = examples._replace(contexts=examples.contexts + first)
        offers = [(self.top, numbered, examples.values), (self.sample, numbered, lottery)]
        if self.levels:
            offers.append((self.levels.best, self.levels.placed(numbered), lottery))
        for kept, offered, priorities in offers:
            which, feature, slot = kept.offer(offered, priorities)
            kept.around[feature, slot] = self._around(examples.take(which), T, *everywhere, acts.n_features)

    def _around(self, examples: Examples, T: int, keys: Tensor, values: Tensor, n_features: int) -> Tensor:
        """(n, window): the same feature's activations at the positions around, 0 outside the context."""
        left, right = self.window
        positions = examples.positions[:, None] + torch.arange(-left, right + 1)
        wanted = (examples.contexts[:, None] * T + positions) * n_features + examples.features[:, None]
        found = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        there = (keys[found] == wanted) & (positions >= 0) & (positions < T)
        return torch.where(there, values[found], 0.0)


def strongest(features: Tensor, contexts: Tensor, positions: Tensor, values: Tensor) -> Examples:
    """Of every feature in every context the place where it is strongest; of equal ones the first."""
    order = torch.argsort(values, descending=True, stable=True)
    pair = features * (int(contexts.max()) + 1) + contexts
    order = order[torch.argsort(pair[order], stable=True)]
    counts = torch.unique_consecutive(pair[order], return_counts=True)[1]
    first = order[counts.cumsum(0) - counts]
    return Examples(features[first], contexts[first], positions[first], values[first])
