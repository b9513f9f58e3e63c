"""Which tokens features read and say: bars of the ends, and curves over chosen tokens. Needs matplotlib."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .curves import COLOURS
from .pareto import NEEDED, REPRODUCIBLE, can_draw

HIGH, LOW = COLOURS[0], COLOURS[1]


def draw_bars(effects: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw what `TokenEffects.to_dict` gives into a .png, .svg or .pdf: a panel for each feature, a bar for each token.

    Raises:
        ValueError: matplotlib is not installed, or there is no feature.
    """
    figure = _figure(len(effects["features"]), 0.2 * _tallest(effects) + 1)
    panels = figure.subplots(1, len(effects["features"]), squeeze=False)[0]
    for axis, (name, ends) in zip(panels, effects["features"].items(), strict=True):
        rows = [*ends["top"], *reversed(ends["bottom"])]
        values = [value for _, value in rows]
        axis.barh(range(len(rows)), values, color=[HIGH if value > 0 else LOW for value in values])
        axis.set_yticks(range(len(rows)), [_shown(token) for token, _ in rows], fontsize=8)
        axis.invert_yaxis()
        axis.axvline(0, color="#777777", linewidth=1)
        axis.set_title(name, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(effects["what"], fontsize=10)
    _save(figure, path)


def draw_curves(
    curves: Mapping[str, Sequence[float]],
    tokens: Sequence[str],
    path: str | os.PathLike[str],
    *,
    scaled: bool = False,
) -> None:
    """Draw a line for each of several effects over the same tokens, in their order; scaled: each between 0 and 1.

    Raises:
        ValueError: matplotlib is not installed, there is no curve, or one has not a value for each token.
    """
    wrong = [name for name, values in curves.items() if len(values) != len(tokens)]
    if wrong:
        raise ValueError(f"these curves have not one value for each of {len(tokens)} tokens: {', '.join(wrong)}")
    figure = _figure(2 if curves else 0, 3.5)
    axis = figure.subplots()
    for n, (name, values) in enumerate(curves.items()):
        low, span = min(values), (max(values) - min(values)) or 1.0
        heights = [(value - low) / span for value in values] if scaled else values
        axis.plot(range(len(tokens)), heights, ".-", color=COLOURS[n % len(COLOURS)], linewidth=1.4, label=name)
    step = max(1, len(tokens) // 20)
    axis.set_xticks(range(0, len(tokens), step), [_shown(token) for token in tokens[::step]], fontsize=8)
    axis.axhline(0, color="#777777", linewidth=1, linestyle=(0, (1, 2)))
    axis.set_ylabel("effect, from its least to its largest" if scaled else "effect")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _figure(panels: int, height: float) -> Any:
    if not can_draw():
        raise ValueError(NEEDED)
    if not panels:
        raise ValueError("there is nothing to draw")
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    return Figure(figsize=(3.5 * panels, height), layout="constrained")


def _tallest(effects: Mapping[str, Any]) -> int:
    return max((len(ends["top"]) + len(ends["bottom"]) for ends in effects["features"].values()), default=0)


def _shown(token: str) -> str:
    return repr(token)[1:-1].replace("$", r"\$")


def _save(figure: Any, path: str | os.PathLike[str]) -> None:
    target = Path(path)
    figure.savefig(target, dpi=110, metadata=REPRODUCIBLE.get(target.suffix))
