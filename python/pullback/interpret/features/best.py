"""The best few of a stream, for many features at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NONE = torch.iinfo(torch.int64).min


class Examples(NamedTuple):
    """n places where a feature is active, each the strongest of its context."""

    features: Tensor  # (n) int64
    contexts: Tensor  # (n) int64, numbers in the stream
    positions: Tensor  # (n) int64
    values: Tensor  # (n)

    def take(self, which: Tensor) -> Examples:
        return Examples(*(column[which] for column in self))


class Kept(NamedTuple):
    """n of the examples that were kept, with the activations around them."""

    contexts: Tensor  # (n) int64
    positions: Tensor  # (n) int64
    values: Tensor  # (n)
    around: Tensor  # (n, window)
    ranks: Tensor  # (n) int64, in the order of priorities

    def take(self, which: Tensor) -> Kept:
        return Kept(*(column[which] for column in self))

    def strongest_first(self) -> Kept:
        """By value; of equal ones the earlier context."""
        order = torch.argsort(self.contexts)
        return self.take(order[torch.argsort(self.values[order], descending=True, stable=True)])


class Best:
    """For every feature the k examples of largest priority, with the activations around them, in no order.

    Of equal priorities the earlier context stays. What is kept is F * k * (28 + 4 * window) bytes.

    Attributes:
        contexts, positions, values: (F, k); a context is -1 where there is none yet.
        around: (F, k, window), activations in a window around the position.
        ranks: (F, k), in the order of priorities.
    """

    def __init__(self, n_features: int, k: int, window: int) -> None:
        self.ranks = torch.full((n_features, k), NONE)
        self._least = torch.full((n_features,), NONE)
        self.contexts = torch.full((n_features, k), -1)
        self.positions = torch.zeros(n_features, k, dtype=torch.int64)
        self.values = torch.zeros(n_features, k)
        self.around = torch.zeros(n_features, k, window)

    def kept(self, features: int | slice) -> Kept:
        """The examples of one feature, or of several that follow each other."""
        contexts, positions, values, ranks = (
            column[features].flatten() for column in (self.contexts, self.positions, self.values, self.ranks)
        )
        kept = Kept(contexts, positions, values, self.around[features].flatten(0, -2), ranks)
        return kept.take((contexts >= 0).nonzero()[:, 0])

    def offer(self, examples: Examples, priorities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take what is good enough. Returns (which of the examples, feature, slot) of those that were taken: their
        `around` is the caller's to fill."""
        k = self.ranks.shape[1]
        ranks = ranks_of(priorities, examples.contexts)
        which = (ranks > self._least[examples.features]).nonzero()[:, 0]
        which = which[torch.argsort(ranks[which], descending=True)]
        which = which[torch.argsort(examples.features[which], stable=True)]  # by feature, the best first
        seen, counts = torch.unique_consecutive(examples.features[which], return_counts=True)
        row = torch.repeat_interleave(torch.arange(len(seen)), counts)
        place = torch.arange(len(which)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        which, row, place = which[place < k], row[place < k], place[place < k]
        both = torch.full((len(seen), 2 * k), NONE)
        both[:, :k] = self.ranks[seen]
        both[row, k + place] = ranks[which]
        number = torch.full((len(seen), k), -1)
        number[row, place] = which
        stays = torch.zeros_like(both, dtype=torch.bool)
        stays.scatter_(1, torch.topk(both, k, dim=1, sorted=False).indices, True)
        stays[:, k:] &= number >= 0
        # As many slots of a row come free as newcomers stay, so both lists, row by row, belong together; where there
        # are slots to spare, those of NONE are as good as any.
        new_row, new_place = stays[:, k:].nonzero(as_tuple=True)
        free = _first(~stays[:, :k], stays[:, k:].sum(1))
        slot = free.nonzero(as_tuple=True)[1]
        taken, feature = number[new_row, new_place], seen[new_row]
        self.ranks[feature, slot] = ranks[taken]
        self._least[seen] = self.ranks[seen].amin(1)
        self.contexts[feature, slot] = examples.contexts[taken]
        self.positions[feature, slot] = examples.positions[taken]
        self.values[feature, slot] = examples.values[taken].float()
        return taken, feature, slot


def ranks_of(priorities: Tensor, contexts: Tensor) -> Tensor:
    """Integers in the order of priorities, and of equal ones against that of contexts; all different."""
    bits = priorities.float().view(torch.int32)
    ascending = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ascending.long() << 32) + (0x7FFFFFFF - contexts)


def _first(mask: Tensor, counts: Tensor) -> Tensor:
    """Of the true entries of each row only the first so many."""
    return mask & (mask.cumsum(1) <= counts[:, None])
