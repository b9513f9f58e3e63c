"""Pictures of results, the only part that needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib  # pyright: ignore[reportMissingImports]

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  # pyright: ignore[reportMissingImports]

from .results import Group, Row, is_ours  # noqa: E402
from .tables import RATES  # noqa: E402

OURS, OTHERS, FLOOR = "#b3342d", "#5b7083", "#b9b9b9"
# Without the version of the software in it, the same results give the same file.
PNG = {"dpi": 110, "metadata": {"Software": None}}


def draw(machine: str, groups: Sequence[Group], folder: Path) -> list[str]:
    """Write the plots of one machine into `folder`; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    others = [group for group in groups if group.op not in RATES and group.competitors]
    for op, what in RATES.items():
        found = [group for group in groups if group.op == op and group.timed]
        if found:
            names.append(f"{machine}-{op}.png")
            _rates(what, found, folder / names[-1])
    if others:
        names.append(f"{machine}-ops.png")
        _ops(others, folder / names[-1])
    return names


def _rates(what: str, groups: Sequence[Group], path: Path) -> None:
    """Tokens a second, a panel for each shape; whiskers from the 20th to the 80th percentile."""
    figure, axes = plt.subplots(1, len(groups), figsize=(5.2 * len(groups), 3.4), squeeze=False, layout="constrained")
    for axis, group in zip(axes[0], groups, strict=True):
        rows = group.timed[::-1]
        rates = [row["notes"]["tokens_per_s"] for row in rows]
        low = [rate * (1 - row["ms"] / row["ms_80"]) for rate, row in zip(rates, rows, strict=True)]
        high = [rate * (row["ms"] / row["ms_20"] - 1) for rate, row in zip(rates, rows, strict=True)]
        axis.barh(
            [row["provider"] for row in rows],
            rates,
            xerr=[low, high],
            color=[_colour(row) for row in rows],
            ecolor="#222222",
            error_kw={"lw": 1},
        )
        axis.set_title(f"{what}, {group.title}", fontsize=9)
        axis.set_xlabel("tokens a second")
        axis.locator_params(axis="x", nbins=6)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, **PNG)
    plt.close(figure)


def _ops(groups: Sequence[Group], path: Path) -> None:
    """How many times its floor each provider takes: a line for each case."""
    figure, axis = plt.subplots(figsize=(9, 0.32 * len(groups) + 1.2), layout="constrained")
    for place, group in enumerate(reversed(groups)):
        for row in group.timed:
            ours = is_ours(row)
            axis.plot(
                row["ms"] / row["floor_ms"],
                place,
                marker="o" if ours else "|",
                color=_colour(row),
                markersize=6 if ours else 11,
                markeredgewidth=2,
                linestyle="none",
                zorder=3 if ours else 2,
            )
    titles = [f"{group.op}  {group.title}" for group in reversed(groups)]
    axis.set_yticks(range(len(groups)), titles, fontsize=7)
    axis.set_xscale("log")
    axis.axvline(1, color=FLOOR, zorder=1)
    axis.set_xlabel(
        "time, in units of the floor (dots: pullback; bars: others; pale: a part none can do without)", fontsize=8
    )
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, **PNG)
    plt.close(figure)


def _colour(row: Row) -> str:
    return FLOOR if row["role"] == "floor" else OURS if is_ours(row) else OTHERS
