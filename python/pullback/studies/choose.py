"""Which features are ablated: ranked on prompts that the test does not contain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pullback.studies.dictionaries import Dictionaries
from pullback.studies.prompts import Prompts

SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64)


def ranked(
    dictionaries: Dictionaries, prompts: Prompts, groups: Tensor, sizes: Sequence[int] = SIZES
) -> Iterator[tuple[int, Tensor]]:
    """For one size after another, the features chosen for each group of prompts (N): (size, ids (K, size)), in the
    order they are taken.

    From one size to the next, those are added whose first-order effect on the margin, summed over the group's prompts
    in the run where the ones before are ablated already, is largest: what steps in for ablated features is found, too.
    """
    order = torch.zeros(int(groups.max()) + 1, 0, dtype=torch.long)
    for size in sizes:
        chosen = mask(order, dictionaries.n)
        effects = dictionaries.effects(prompts, groups, chosen).masked_fill(chosen, -torch.inf)
        order = torch.cat([order, effects.topk(size - order.shape[1], 1).indices], 1)
        yield size, order


def mask(order: Tensor, n: int) -> Tensor:
    """Which of n features are among each group's, (K, n) bool."""
    return torch.zeros(len(order), n, dtype=torch.bool).scatter_(1, order, True)
