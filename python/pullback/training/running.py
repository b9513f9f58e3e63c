"""What a training step remembers of the batches before it: targets, idle features, how the last one went."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pullback.ops import column_moments


class RunningVariance(NamedTuple):
    """Mean and sum of squared deviations over all rows so far, in float64."""

    n: int
    mean: Tensor
    """Float64[Tensor, "d"]"""
    scatter: Tensor
    """Float64[Tensor, ""]: sum_n ||y_n - mean||^2"""

    @classmethod
    def of_nothing(cls, d: int, device: torch.device) -> RunningVariance:
        zero = torch.zeros(d + 1, dtype=torch.float64, device=device)
        return cls(0, zero[:d], zero[d])

    def after(self, y: Tensor) -> RunningVariance:
        """With the rows y Float[Tensor, "n d"] too.

        The sums run over deviations from the mean so far, which keeps them small; the shift of the mean is then taken
        out again (the pairwise update of Chan, Golub and LeVeque).
        """
        n, total = len(y), self.n + len(y)
        center = self.mean if self.n else y.mean(0).double()
        sums, squares = column_moments(y, center)
        shift = sums / n
        scatter = self.scatter + squares - shift.square().sum() * (n * n / total)
        return RunningVariance(total, center + shift * (n / total), scatter)

    @property
    def variance(self) -> Tensor:
        """E ||y - E y||^2, kept off zero for rows that do not vary: Float64[Tensor, ""]."""
        return torch.maximum(self.scatter / self.n, 1e-12 * self.mean.square().sum() + 1e-30)


class Firing:
    """How many tokens ago each feature last fired; those beyond `window` are dead."""

    def __init__(self, n_features: int, window: int, device: torch.device) -> None:
        self.window = window
        # One place more than features: where empty slots are counted, so that nothing depends on how many there are.
        self._tokens = torch.zeros(n_features + 1, dtype=torch.long, device=device)

    @property
    def tokens_since(self) -> Tensor:
        """Int64[Tensor, "F"]"""
        return self._tokens[:-1]

    def count(self, n: int, values: Tensor, features: Tensor) -> None:
        """A batch of n tokens: values and features Tensor["nnz"] of its entries."""
        self._tokens += n
        places = torch.where(values != 0, features, len(self._tokens) - 1)
        self._tokens.index_fill_(0, places.long(), 0)

    def n_dead(self) -> Tensor:
        """Int64[Tensor, ""]"""
        return (self.tokens_since >= self.window).sum()

    def dead(self, count: int | None = None) -> Tensor:
        """Int64[Tensor, "n_dead"]: the ids of the dead, ascending. Who knows how many there are need not wait for the
        device to count them."""
        alive = self.tokens_since < self.window
        if count is None:
            return (~alive).nonzero().flatten()
        if count == 0:
            return alive.new_empty(0, dtype=torch.long)
        return alive.to(torch.uint8).argsort(stable=True)[:count]


class Readback:
    """A few numbers that the host wants to know of each step.

    From a GPU they are copied while other work goes on, and read in the next step, when its first kernels are queued:
    the device is never idle for them. On a CPU they are simply there.
    """

    def __init__(self) -> None:
        self._numbers: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def put(self, *numbers: Tensor) -> None:
        stacked = torch.stack([number.double() for number in numbers])
        if stacked.is_cuda:
            self._numbers = torch.empty(len(numbers), dtype=torch.float64, pin_memory=True)
            self._numbers.copy_(stacked, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        else:
            self._numbers = stacked

    def get(self) -> list[float] | None:
        """The numbers last put, None before the first."""
        if self._copied is not None:
            self._copied.synchronize()
        return None if self._numbers is None else self._numbers.tolist()
