"""Telling one MLP from another by a few numbers that survive a change of dtype and of the order of sums."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.transcoders import Rows

N_NUMBERS = 16
SAMPLE = 256  # rows and columns looked at: enough to tell models apart, cheap for any
TOLERANCE = 0.01  # of the norm; rounding to bfloat16 moves a number by about 0.001, another model by about 0.5


def fingerprint(weight: Rows) -> str:
    """Norm of a sample S of the weight (n, m), and 16 numbers a_k S b_k with fixed waves a_k, b_k, as one string.

    A hash would do for equal bits only, and folding a norm in another precision changes bits.
    """
    rows = weight[torch.arange(0, len(weight), -(-len(weight) // SAMPLE), device=weight.device)]
    sample = rows[:, :: -(-rows.shape[1] // SAMPLE)].detach().double().cpu()
    a, b = (_waves(n, phase) for n, phase in zip(sample.shape, (1.0, 2.0), strict=True))
    numbers = torch.cat([sample.norm()[None], torch.einsum("kn,nm,km->k", a, sample, b)])
    return ",".join(f"{x:.6g}" for x in numbers.tolist())


def same_weight(one: str, other: str) -> bool:
    """Whether two fingerprints are of the same weight, up to rounding; False for strings that are no fingerprints."""
    try:
        a, b = (torch.tensor([float(x) for x in text.split(",")], dtype=torch.double) for text in (one, other))
    except ValueError:
        return False
    return a.shape == b.shape and bool(((a - b).abs() <= TOLERANCE * torch.maximum(a[0], b[0])).all())


def _waves(n: int, phase: float) -> Tensor:
    """16 fixed sine waves over n places, (16, n), of frequencies that never line up."""
    frequencies = torch.arange(1, N_NUMBERS + 1, dtype=torch.double) * 2.0**0.5 + phase
    return torch.sin(torch.outer(frequencies, torch.arange(1, n + 1, dtype=torch.double)))
