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


class Best:
    """For every feature the k examples of largest priority, with the activations around them, in no order.

    Of equal priorities the earlier context stays. What is kept is F * k * (28 + 4 * window) bytes.

    Attributes:
        contexts, positions, values: (F, k); a context is -1 where there is none yet.
        around: (F, k, window), activations in a window around the position.
    """

    def __init__(self, n_features: int, k: int, window: int) -> None:
        self._ranks = torch.full((n_features, k), NONE)
        self._least = torch.full((n_features,), NONE)
        self.contexts = torch.full((n_features, k), -1)
        self.positions = torch.zeros(n_features, k, dtype=torch.int64)
        self.values = torch.zeros(n_features, k)
        self.around = torch.zeros(n_features, k, window)

    def offer(self, examples: Examples, priorities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take what is good enough. Returns (which of the examples, feature, slot) of those that were taken: their
        `around` is the caller's to fill."""
        k = self._ranks.shape[1]
        ranks = _ranks(priorities, examples.contexts)
        which = (ranks > self._least[examples.features]).nonzero()[:, 0]
        which = which[torch.argsort(ranks[which], descending=True)]
        which = which[torch.argsort(examples.features[which], stable=True)]  # by feature, the best first
        seen, counts = torch.unique_consecutive(examples.features[which], return_counts=True)
        row = torch.repeat_interleave(torch.arange(len(seen)), counts)
        place = torch.arange(len(which)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        which, row, place = which[place < k], row[place < k], place[place < k]
        both = torch.full((len(seen), 2 * k), NONE)
        both[:, :k] = self._ranks[seen]
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
        self._ranks[feature, slot] = ranks[taken]
        self._least[seen] = self._ranks[seen].amin(1)
        self.contexts[feature, slot] = examples.contexts[taken]
        self.positions[feature, slot] = examples.positions[taken]
        self.values[feature, slot] = examples.values[taken].float()
        return taken, feature, slot


def _ranks(priorities: Tensor, contexts: Tensor) -> Tensor:
    """Integers in the order of priorities, and of equal ones against that of contexts; all different."""
    bits = priorities.float().view(torch.int32)
    ascending = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ascending.long() << 32) + (0x7FFFFFFF - contexts)


def _first(mask: Tensor, counts: Tensor) -> Tensor:
    """Of the true entries of each row only the first so many."""
    return mask & (mask.cumsum(1) <= counts[:, None])
