"""The best few of a stream, for many features at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Examples(NamedTuple):
    """n places where a feature is active, each the strongest of its context."""

    features: Tensor  # (n) int64
    contexts: Tensor  # (n) int64, numbers in the stream
    positions: Tensor  # (n) int64
    values: Tensor  # (n)

    def take(self, which: Tensor) -> Examples:
        return Examples(*(column[which] for column in self))


class Best:
    """For every feature the k examples of largest priority, with the activations around them.

    Of equal priorities the earlier example stays. What is kept is F * k * (24 + 4 * window) bytes.

    Attributes:
        priorities: (F, k), -inf where there is none yet.
        contexts, positions, values: (F, k).
        around: (F, k, window), activations in a window around the position.
    """

    def __init__(self, n_features: int, k: int, window: int) -> None:
        self.k = k
        self.priorities = torch.full((n_features, k), -torch.inf)
        self.contexts = torch.full((n_features, k), -1)
        self.positions = torch.zeros(n_features, k, dtype=torch.int64)
        self.values = torch.zeros(n_features, k)
        self.around = torch.zeros(n_features, k, window)

    def offer(self, examples: Examples, priorities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take what is good enough. Returns (which of the examples, feature, slot) of those that were taken: their
        `around` is the caller's to fill."""
        worth = priorities > self.priorities[examples.features, -1]
        which = worth.nonzero()[:, 0]
        order = torch.argsort(priorities[which], descending=True, stable=True)
        order = order[torch.argsort(examples.features[which[order]], stable=True)]
        which = which[order]  # by feature, the best first
        seen, counts = torch.unique_consecutive(examples.features[which], return_counts=True)
        rank = torch.arange(len(which)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        row = torch.repeat_interleave(torch.arange(len(seen)), counts)
        fits = rank < self.k
        which, rank, row = which[fits], rank[fits], row[fits]
        incoming = torch.full((len(seen), self.k), -torch.inf)
        incoming[row, rank] = priorities[which].float()
        number = torch.full((len(seen), self.k), -1)
        number[row, rank] = which
        both = torch.cat([self.priorities[seen], incoming], 1)
        chosen = torch.argsort(both, dim=1, descending=True, stable=True)[:, : self.k]
        self.priorities[seen] = both.gather(1, chosen)
        old = chosen.clamp(max=self.k - 1)
        new = number.gather(1, (chosen - self.k).clamp(min=0)).where(chosen >= self.k, -1)
        for column, fresh in (
            (self.contexts, examples.contexts),
            (self.positions, examples.positions),
            (self.values, examples.values.float()),
        ):
            kept = column[seen].gather(1, old)
            column[seen] = torch.where(new >= 0, fresh[new.clamp(min=0)], kept)
        self.around[seen] = self.around[seen].gather(1, old[..., None].expand(-1, -1, self.around.shape[2]))
        taken, slot = (new >= 0).nonzero(as_tuple=True)
        return new[taken, slot], seen[taken], slot
