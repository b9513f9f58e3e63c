"""Vectors that read the residual stream: what a path has come to, and goes on from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.attribution.paths.nodes import Columns

EMBED = -1  # the depth (`lens.depth`) at which the stream begins


@dataclass(frozen=True, eq=False)
class Readings(Columns):
    """n functionals <v, what is written to the stream at depths first <= depth < below> + own.

    vectors: (n, d), with the coefficients of the whole path from its root, so that a contribution is one to the root.
    pos: (n). own: (n), the constant, with those coefficients: of a feature, b_enc and the norm's bias.
    """

    vectors: Tensor
    pos: Tensor
    first: Tensor
    below: Tensor
    own: Tensor

    def sees(self, depth: int) -> Tensor:
        """Bool[Tensor, 'n']: whether what is written at this depth reaches them."""
        return (self.first <= depth) & (depth < self.below)

    @staticmethod
    def of_the_stream(vectors: Tensor, pos: Tensor, below: int, own: Tensor | None = None) -> Readings:
        """Of everything written below a depth."""
        return Readings(
            vectors=vectors,
            pos=pos,
            first=torch.full_like(pos, EMBED),
            below=torch.full_like(pos, below),
            own=vectors.new_zeros(len(pos)) if own is None else own,
        )

    @staticmethod
    def of_nothing(vectors: Tensor, pos: Tensor) -> Readings:
        """Where paths end: vectors (n, d) that nothing reaches."""
        return Readings.of_the_stream(vectors, pos, EMBED)
