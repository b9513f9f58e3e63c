"""Which features are ablated: ranked on prompts that the test does not contain."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.studies.dictionaries import Dictionaries
from pullback.studies.prompts import Prompts

SIZES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def ranked(dictionaries: Dictionaries, prompts: Prompts, groups: Tensor, sizes: tuple[int, ...] = SIZES) -> Tensor:
    """For each group of prompts (N), its max(sizes) features in the order they are taken: (K, m).

    From one size to the next, those are added whose first-order effect on the margin, summed over the group's prompts
    in the run where the ones before are ablated already, is largest: what steps in for ablated features is found, too.
    """
    K = int(groups.max()) + 1
    chosen = torch.zeros(K, dictionaries.n, dtype=torch.bool)
    order: list[Tensor] = []
    for before, size in zip((0, *sizes), sizes, strict=False):
        effects = dictionaries.effects(prompts, groups, chosen).masked_fill(chosen, -torch.inf)
        order.append(effects.topk(size - before, 1).indices)
        chosen.scatter_(1, order[-1], True)
    return torch.cat(order, 1)


def mask(order: Tensor, size: int, n: int) -> Tensor:
    """The first `size` of each group's features, (K, n) bool."""
    return torch.zeros(len(order), n, dtype=torch.bool).scatter_(1, order[:, :size], True)
