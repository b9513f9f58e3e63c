"""How much is lost at which sparsity: the picture of a sweep. The only part that needs matplotlib."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

NEEDED = 'pictures of curves need matplotlib: pip install "matplotlib>=3.8"'
COLOURS = {"transcoder": "#b3342d", "sae": "#3b6a9c"}
# Without version and date in it, the same figures give the same file.
REPRODUCIBLE = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
STYLES = ("-", "--", ":", "-.")
FAR = 3  # times the span of the curves


def can_draw() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def draw(sweep: Mapping[str, Any], path: str | os.PathLike[str], published: Sequence[Mapping[str, Any]] = ()) -> None:
    """Draw the content of sweep.json into a .png, .svg or .pdf: L0 against the loss with all layers replaced, and L0
    against FVU, a row for each evaluation.

    Points are arms; lines go through the means over seeds, bars from the least to the largest. Horizontal lines are the
    loss of the model itself and of the model with all these outputs at their means, or at zero; one that lies so far
    off that the curves would be flat beside it is given as a number. `published` curves of the same model and layer
    ({"kind", "source", "points": [{"l0", "ce"}]}) are hollow.

    Raises:
        ValueError: matplotlib is not installed, or the sweep has no arm.
    """
    if not can_draw():
        raise ValueError(NEEDED)
    arms = list(sweep["arms"].values())
    if not arms:
        raise ValueError("the sweep has no finished arm to draw")
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    evaluations = list(arms[0]["figures"])
    figure = Figure(figsize=(11, 3.9 * len(evaluations)), layout="constrained")
    panels = figure.subplots(len(evaluations), 2, squeeze=False)
    for name, (loss, fvu) in zip(evaluations, panels, strict=True):
        _curves(loss, arms, name, "ce_replaced")
        _published(loss, published)
        _levels(loss, arms, name)
        _curves(fvu, arms, name, "fvu")
        loss.set_ylabel("cross-entropy, all layers replaced (nats)")
        fvu.set_ylabel("FVU, mean over layers")
        for axis in (loss, fvu):
            axis.set_title(name, fontsize=9)
            axis.set_xscale("log", base=2)
            axis.set_xlabel("L0, mean over layers")
            axis.spines[["top", "right"]].set_visible(False)
        (loss if published else fvu).legend(frameon=False, fontsize=8)
    target = Path(path)
    figure.savefig(target, dpi=110, metadata=REPRODUCIBLE.get(target.suffix))


def _published(axis: Any, curves: Sequence[Mapping[str, Any]]) -> None:
    for curve in curves:
        points = sorted((point["l0"], point["ce"]) for point in curve["points"])
        label = f"{curve['kind']}, {curve['source']}"
        colour = COLOURS.get(curve["kind"], "#444444")
        axis.plot(*zip(*points, strict=True), "o-", color=colour, linewidth=0.8, markerfacecolor="none", label=label)


def _levels(axis: Any, arms: Sequence[Mapping[str, Any]], evaluation: str) -> None:
    first = arms[0]["figures"][evaluation]
    levels = {
        "the model": first["ce_original"],
        "outputs at their means": first["ce_mean_ablated"],
        "outputs at zero": first["ce_zero_ablated"],
    }
    losses = [y for arm in arms if (y := arm["figures"][evaluation]["ce_replaced"]) is not None]
    near = [*losses, levels["the model"]]
    span = max(near) - min(near)
    for row, (what, level) in enumerate(levels.items()):
        if min(near) - FAR * span <= level <= max(near) + FAR * span:
            axis.axhline(level, color="#777777", linewidth=1, linestyle=(0, (1, 2)))
            axis.annotate(what, (1, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", size=8)
        else:
            where = "above" if level > max(near) else "below"
            place = (1, 0.97 - 0.06 * row)
            axis.annotate(
                f"{what}: {level:.3f}, {where}", place, xycoords="axes fraction", ha="right", va="top", size=8
            )


def _curves(axis: Any, arms: Sequence[Mapping[str, Any]], evaluation: str, figure: str) -> None:
    architectures = list(dict.fromkeys(arm["architecture"] for arm in arms))
    for kind in dict.fromkeys(arm["kind"] for arm in arms):
        for architecture, style in zip(architectures, STYLES * len(architectures), strict=False):
            own = [arm for arm in arms if (arm["kind"], arm["architecture"]) == (kind, architecture)]
            by_setting: dict[Any, list[tuple[float, float]]] = {}
            for arm in own:
                x, y = (mean_over_layers(arm["figures"][evaluation][name]) for name in ("l0", figure))
                if x is not None and y is not None:
                    by_setting.setdefault(arm["value"], []).append((x, y))
            points = sorted((fmean(x for x, _ in seeds), seeds) for seeds in by_setting.values())
            if not points:
                continue
            middle = [fmean(y for _, y in seeds) for _, seeds in points]
            # A mean of equal numbers may round past them.
            below = [max(0.0, m - min(y for _, y in seeds)) for m, (_, seeds) in zip(middle, points, strict=True)]
            above = [max(0.0, max(y for _, y in seeds) - m) for m, (_, seeds) in zip(middle, points, strict=True)]
            axis.errorbar(
                [x for x, _ in points],
                middle,
                yerr=[below, above],
                color=COLOURS.get(kind, "#444444"),
                linestyle=style,
                linewidth=1.4,
                capsize=3,
                label=f"{kind} {architecture}",
            )
            flat = [point for _, seeds in points for point in seeds]
            axis.plot(*zip(*flat, strict=True), ".", color=COLOURS.get(kind, "#444444"), markersize=4, alpha=0.5)


def mean_over_layers(figure: Any) -> float | None:
    """A number as it is; of {layer: number} the mean; None where one of them is no finite number."""
    values = list(figure.values()) if isinstance(figure, Mapping) else [figure]
    return None if None in values else fmean(values)
