"""The contexts of a stream that somebody may still want to see."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

HELD = 2**24  # tokens that are kept before the first look at which of them are wanted


class Contexts:
    """Token ids of contexts, by their number in the stream; those that no example refers to are forgotten."""

    def __init__(self) -> None:
        self.seen = 0
        self._numbers: list[Tensor] = []
        self._tokens: list[Tensor] = []
        self._limit = HELD

    def add(self, tokens: Tensor) -> int:
        """Contexts (B, T); returns the number of the first."""
        first = self.seen
        self.seen += len(tokens)
        self._numbers.append(torch.arange(first, self.seen))
        self._tokens.append(tokens.to(device="cpu", dtype=torch.int32))
        return first

    @property
    def full(self) -> bool:
        """Whether it is time to `keep` only what is wanted."""
        return sum(part.numel() for part in self._tokens) > self._limit

    def keep(self, wanted: Iterable[Tensor]) -> None:
        """Forget the contexts whose numbers are in none of these tensors."""
        numbers = torch.unique(torch.cat([part.flatten() for part in wanted]))
        there = [torch.isin(part, numbers) for part in self._numbers]
        self._tokens = [part[mask] for part, mask in zip(self._tokens, there, strict=True) if bool(mask.any())]
        self._numbers = [part[mask] for part, mask in zip(self._numbers, there, strict=True) if bool(mask.any())]
        self._limit = max(HELD, 2 * sum(part.numel() for part in self._tokens))

    def table(self) -> tuple[Tensor, Tensor]:
        """Numbers (n), ascending, and tokens Int32[Tensor, 'n T'], -1 behind the end of a shorter context."""
        longest = max((part.shape[1] for part in self._tokens), default=0)
        pad = torch.nn.functional.pad
        rows = [pad(part, (0, longest - part.shape[1]), value=-1) for part in self._tokens]
        nothing = torch.zeros(0, dtype=torch.int64), torch.zeros(0, longest, dtype=torch.int32)
        return torch.cat([*self._numbers, nothing[0]]), torch.cat([*rows, nothing[1]])
