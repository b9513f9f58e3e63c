"""Prompts of a behaviour: token ids, where the answer is read, and what is measured there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Prompts:
    """N prompts, padded on the right, where causal attention never looks.

    tokens: (N, T) int64. at: (N), the position that is asked. wanted: (N, V), coefficients of logits that make up the
    margin. keys: what each prompt asks for; features are chosen on other prompts of the same key.
    """

    tokens: Tensor
    at: Tensor
    wanted: Tensor
    keys: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, rows: slice) -> Prompts:
        return Prompts(self.tokens[rows], self.at[rows], self.wanted[rows], self.keys[rows])

    def row(self, n: int) -> Tensor:
        """Token ids of prompt n alone, (T')."""
        return self.tokens[n, : int(self.at[n]) + 1]

    def margins(self, logits: Tensor) -> Tensor:
        """Float[Tensor, 'N T V'] -> Float[Tensor, 'N']"""
        rows = torch.arange(len(self), device=logits.device)
        return (logits[rows, self.at.to(logits.device)] * self.wanted.to(logits)).sum(-1)

    def pair(self, n: int) -> tuple[int, int]:
        """The token that prompt n wants most, and the one it wants least; of equals, the first."""
        return int(self.wanted[n].argmax()), int(self.wanted[n].argmin())


@dataclass(frozen=True)
class Question:
    """One prompt before padding: its ids with those of its answer for, and those against, which count evenly."""

    ids: tuple[int, ...]
    right: tuple[int, ...]
    wrong: tuple[int, ...]
    key: str


def padded(questions: Sequence[Question], d_vocab: int) -> Prompts:
    """Questions that all end where their answer is asked, as one block. Padding repeats a prompt's own last token."""
    length = max(len(q.ids) for q in questions)
    wanted = torch.zeros(len(questions), d_vocab)
    for row, q in zip(wanted, questions, strict=True):
        row[list(q.right)] += 1 / len(q.right)
        row[list(q.wrong)] -= 1 / len(q.wrong)
    return Prompts(
        torch.tensor([[*q.ids, *[q.ids[-1]] * (length - len(q.ids))] for q in questions]),
        torch.tensor([len(q.ids) - 1 for q in questions]),
        wanted,
        tuple(q.key for q in questions),
    )
