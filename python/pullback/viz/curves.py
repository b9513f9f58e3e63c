"""How much of an answer growing circuits carry: the picture of faithfulness curves. Needs matplotlib."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .pareto import NEEDED, REPRODUCIBLE, can_draw

COLOURS = ("#b3342d", "#3b6a9c", "#5b8c5a", "#b8860b", "#7d5ba6", "#444444")
PANELS = (("signed", "faithfulness"), ("absolute", "faithfulness"), ("signed", "completeness"))
TITLES = {
    "faithfulness": "the circuit alone",
    "completeness": "everything but the circuit",
}


def draw(curves: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw what `Curves.to_dict` gives into a .png, .svg or .pdf: faithfulness over the share of nodes kept, by signed
    and by absolute scores, and that of the complement; a line for each ranking.

    Raises:
        ValueError: matplotlib is not installed, or there is no curve.
    """
    if not can_draw():
        raise ValueError(NEEDED)
    if not curves["curves"]:
        raise ValueError("there is no curve to draw")
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    figure = Figure(figsize=(5 * len(PANELS), 4), layout="constrained")
    for axis, (order, what) in zip(figure.subplots(1, len(PANELS), sharex=True), PANELS, strict=True):
        for n, (name, orders) in enumerate(curves["curves"].items()):
            curve = orders[order]
            label = f"{name} ({_area(curves['areas'][name], order)})" if what == "faithfulness" else name
            axis.plot(curve["sizes"], curve[what], ".-", color=COLOURS[n % len(COLOURS)], linewidth=1.4, label=label)
        for level in (0, 1):
            axis.axhline(level, color="#777777", linewidth=1, linestyle=(0, (1, 2)))
        axis.set_title(f"{TITLES[what]}, best nodes by {order} score", fontsize=9)
        axis.set_xscale("log")
        axis.set_xlabel("share of nodes in the circuit")
        axis.set_ylabel("share of the margin")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    figure.suptitle(curves["prompt"].replace("$", r"\$"), fontsize=10)
    target = Path(path)
    figure.savefig(target, dpi=110, metadata=REPRODUCIBLE.get(target.suffix))


def _area(areas: Mapping[str, float], order: str) -> str:
    """MIB's figure of that order."""
    return f"CPR {areas['cpr']:.2f}" if order == "signed" else f"CMD {areas['cmd']:.2f}"
