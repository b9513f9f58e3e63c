"""Figures of circuits as the MIB benchmark defines them (METHODS 5.8): arithmetic only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pullback._util.statistics import ranks

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def faithfulness(circuit: float, full: float, empty: float) -> float:
    """Share of what the model has over its empty circuit that a circuit has: (m(C) - m(empty)) / (m(N) - m(empty)).

    Raises ValueError where the model's measure is that of the empty circuit.
    """
    if full == empty:
        raise ValueError(
            f"faithfulness: the measure is {full} with every node and with none, so no circuit can be judged by it; "
            "choose another margin or ablation"
        )
    return (circuit - empty) / (full - empty)


def cpr(sizes: Sequence[float], f: Sequence[float]) -> float:
    """Circuit performance ratio: area under faithfulness over size, by trapezoids. More is better; it may exceed 1."""
    return _area(sizes, f)


def cmd(sizes: Sequence[float], f: Sequence[float]) -> float:
    """Circuit-model distance: area between faithfulness and 1. Less is better."""
    return _area(sizes, [abs(1 - value) for value in f])


def _area(sizes: Sequence[float], values: Sequence[float]) -> float:
    if len(sizes) != len(values) or len(sizes) < 2 or any(b <= a for a, b in zip(sizes, sizes[1:], strict=False)):
        raise ValueError(f"an area needs two or more ascending sizes and a value for each, got {sizes} and {values}")
    steps = zip(sizes, sizes[1:], values, values[1:], strict=False)
    return sum((b - a) * (fa + fb) / 2 for a, b, fa, fb in steps)


def auroc(scores: Tensor, truth: Tensor) -> float:
    """Probability that a true node or edge outscores one that is not, ties counting half: (n), (n) bool.

    Raises ValueError unless there are some of both, and for scores that are NaN.
    """
    n_true = int(truth.sum())
    if truth.dtype != torch.bool or truth.shape != scores.shape or not 0 < n_true < len(truth):
        raise ValueError(
            "auroc: needs scores (n) and a mask (n) of bool with both values in it, got "
            f"{list(scores.shape)}, {truth.dtype} {list(truth.shape)} with {n_true} true"
        )
    if bool(scores.isnan().any()):
        raise ValueError("auroc: some scores are NaN, which neither outscore others nor are outscored")
    above = ranks(scores)[truth].sum() - n_true * (n_true - 1) / 2
    return float(above / (n_true * (len(truth) - n_true)))
