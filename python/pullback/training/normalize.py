"""Activations brought to one size for training, by factors that end up in the weights."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pullback.transcoders import Transcoder

NORMALIZATIONS = ("none", "expected_average_only_in")


class Scale(NamedTuple):
    """Factors of inputs and targets with which a row of d has norm sqrt(d) on average."""

    x: float
    y: float

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Scale:
        """Of the rows x Float[Tensor, "n d_in"] and y Float[Tensor, "n d_out"]. Rows without size stay as they are."""
        return cls(_factor(x), _factor(y))

    def applied(self, x: Tensor, y: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return x.to(dtype) * self.x, y.to(dtype) * self.y

    def folded(self, tc: Transcoder) -> Transcoder:
        """The transcoder of raw activations that does what `tc` does of scaled ones. Pre-activations are the same, and
        so are thresholds:

            W_enc (s_x x) + b_enc = (s_x W_enc) x + b_enc,      (z W_dec + b_dec) / s_y = z (W_dec / s_y) + b_dec / s_y
        """
        return Transcoder(
            tc.W_enc * self.x,
            tc.b_enc.clone(),
            tc.W_dec / self.y,
            tc.b_dec / self.y,
            None if tc.W_skip is None else tc.W_skip * (self.x / self.y),
            activation=tc.activation,
            hook_in=tc.hook_in,
            hook_out=tc.hook_out,
            reading=tc.reading,
        )


def _factor(rows: Tensor) -> float:
    size = float(torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).mean()) / math.sqrt(rows.shape[1])
    # What is not finite is for the step to name.
    return 1 / size if 0 < size < math.inf else 1.0
