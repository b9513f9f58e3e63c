"""A group of processes that exchange tensors, each of which calls the same method at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Peers:
    """Processes that exchange tensors on the device that these are on.

    Args:
        ranks: of the processes, in order.
        group: theirs, of `torch.distributed`.

    Attributes:
        rank: the place of this process among them.
        size: how many they are.
    """

    def __init__(self, ranks: Sequence[int], group: Any) -> None:
        self.ranks = list(ranks)
        self.group = group
        self.rank = self.ranks.index(dist.get_rank())
        self.size = len(self.ranks)

    def sum(self, part: Tensor) -> Tensor:
        """The sum over all processes, with the same bits in each."""
        return self._reduced(part, dist.ReduceOp.SUM)

    def smallest(self, own: Tensor) -> Tensor:
        return self._reduced(own, dist.ReduceOp.MIN)

    def gathered(self, own: Tensor) -> Tensor:
        """Tensors of one shape, stacked in order of the processes: Tensor[R, ...]."""
        every = own.new_empty(self.size, *own.shape)
        dist.all_gather(list(every.unbind()), own.contiguous(), group=self.group)
        return every

    def joined(self, own: Tensor) -> list[Tensor]:
        """Tensors of any lengths, in order of the processes."""
        lengths = self.gathered(torch.tensor(len(own), device=own.device)).tolist()
        padded = own.new_zeros(max(lengths), *own.shape[1:])
        padded[: len(own)] = own
        return [rows[:length] for rows, length in zip(self.gathered(padded), lengths, strict=True)]

    def told(self, tensor: Tensor, teller: int) -> Tensor:
        """The tensor of one process of the group, written over those of the others."""
        dist.broadcast(tensor, self.ranks[teller], group=self.group)
        return tensor

    def _reduced(self, own: Tensor, op: Any) -> Tensor:
        total = own.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, op, group=self.group)
        return total
