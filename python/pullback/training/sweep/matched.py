"""Transcoders against autoencoders at the same L0, seed by seed.

An arm's L0 is what comes out of its setting, so figures are interpolated: linearly in log L0, between the two arms of
the same kind and seed around the L0 that is asked for. Nothing is extrapolated.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import log
from typing import Any

from pullback.viz.pareto import mean_over_layers

FIGURES = ("ce_recovered", "ce_replaced", "kl", "top1_agreement", "fvu")
SLACK = 1.02  # an L0 this much beyond the outermost arm takes that arm's figures
Curve = list[tuple[float, float]]


def matched(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Of the arms of `sweep.json`: {evaluation: {architecture: {figure: comparison}}}, where both kinds were trained.

    A comparison has the L0s (those of the transcoders, means over seeds, as far as all curves reach), the means over
    seeds of either kind, the mean and standard deviation over seeds of the difference, transcoder less autoencoder, and
    the difference of each seed, averaged over the L0s ("by_seed") with its mean and standard deviation ("overall").
    Figures of layers are averaged over layers.
    """
    found: dict[str, Any] = {}
    for evaluation in dict.fromkeys(name for arm in arms.values() for name in arm["figures"]):
        for architecture in dict.fromkeys(arm["architecture"] for arm in arms.values()):
            own = [arm for arm in arms.values() if arm["architecture"] == architecture]
            both = {figure: _comparison(own, evaluation, figure) for figure in FIGURES}
            if all(both.values()):
                found.setdefault(evaluation, {})[architecture] = both
    return found


def curves(arms: Sequence[Mapping[str, Any]], kind: str, evaluation: str, figure: str) -> dict[int, Curve]:
    """{seed: [(L0, figure), ...]} with ascending L0; an arm without any active feature has no log L0, and no place."""
    found: dict[int, Curve] = {}
    for arm in arms:
        if arm["kind"] == kind:
            l0, value = (mean_over_layers(arm["figures"][evaluation][name]) for name in ("l0", figure))
            if l0 and value is not None:
                found.setdefault(arm["seed"], []).append((l0, value))
    return {seed: sorted(curve) for seed, curve in found.items()}


def interpolated(curve: Curve, l0: float) -> float | None:
    """The figure at an L0, None where the curve does not reach."""
    if not curve[0][0] / SLACK <= l0 <= curve[-1][0] * SLACK:
        return None
    for (left, low), (right, high) in pairwise(curve):
        if left <= l0 <= right:
            share = log(l0 / left) / log(right / left) if right > left else 0.0
            return low + share * (high - low)
    return curve[0][1] if l0 <= curve[0][0] else curve[-1][1]


def _comparison(arms: Sequence[Mapping[str, Any]], evaluation: str, figure: str) -> dict[str, Any] | None:
    ours, theirs = (curves(arms, kind, evaluation, figure) for kind in ("transcoder", "sae"))
    seeds = sorted(ours.keys() & theirs.keys())
    steps = min((len(ours[seed]) for seed in seeds), default=0)
    wanted = [statistics.fmean(ours[seed][i][0] for seed in seeds) for i in range(steps)]
    rows = []
    for l0 in wanted:
        pairs = [(interpolated(ours[seed], l0), interpolated(theirs[seed], l0)) for seed in seeds]
        values = [(a, b) for a, b in pairs if a is not None and b is not None]
        if len(values) == len(seeds):
            rows.append((l0, values))
    if not rows:
        return None
    differences = [[a - b for a, b in values] for _, values in rows]
    by_seed = [statistics.fmean(column) for column in zip(*differences, strict=True)]
    return {
        "l0": [l0 for l0, _ in rows],
        "transcoder": [statistics.fmean(a for a, _ in values) for _, values in rows],
        "sae": [statistics.fmean(b for _, b in values) for _, values in rows],
        "difference": [statistics.fmean(row) for row in differences],
        "std": [_deviation(row) for row in differences],
        "by_seed": dict(zip(seeds, by_seed, strict=True)),
        "overall": {"mean": statistics.fmean(by_seed), "std": _deviation(by_seed)},
    }


def _deviation(values: Sequence[float]) -> float | None:
    """Over seeds; one seed has none."""
    return statistics.stdev(values) if len(values) > 1 else None
