"""A sweep as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pullback.viz.pareto import mean_over_layers

COLUMNS = ("l0", "fvu", "dead", "ce_replaced", "ce_recovered", "kl")


def summary(content: Mapping[str, Any]) -> list[str]:
    """The content of sweep.json: a line an arm, figures of layers averaged, and transcoders against autoencoders."""
    lines = []
    for evaluation in content["evaluation"]:
        lines += ["", f"{evaluation:<40}" + "".join(f" {name:>12}" for name in COLUMNS)]
        for name, arm in content["arms"].items():
            figures = (mean_over_layers(arm["figures"][evaluation][column]) for column in COLUMNS)
            lines.append(f"{name:<40}" + "".join(f" {'-' if x is None else format(x, '.4f'):>12}" for x in figures))
        for architecture, figures in content["matched"].get(evaluation, {}).items():
            lines.append(
                f"{architecture}, transcoder less sae at L0 {_span(figures['ce_recovered']['l0'])}: "
                + ", ".join(f"{name} {_spread(figures[name]['overall'])}" for name in ("ce_recovered", "kl", "fvu"))
            )
    return lines


def _span(l0: list[float]) -> str:
    return f"{l0[0]:.1f}" if len(l0) == 1 else f"{l0[0]:.1f} to {l0[-1]:.1f}"


def _spread(overall: Mapping[str, float | None]) -> str:
    std = overall["std"]
    return f"{overall['mean']:+.4f}" + ("" if std is None else f" (std over seeds {std:.4f})")
