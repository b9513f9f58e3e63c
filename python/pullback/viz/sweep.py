"""A sweep as one HTML page that needs nothing but a browser: L0 against loss between the bounds, and every figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .document import document
from .pareto import mean_over_layers

STYLES = ("base.css", "head.css", "sweep.css")
SCRIPTS = ("text.js", "dom.js", "chart.js", "sweep.js")
FIGURES = ("l0", "fvu", "dead", "ce_replaced", "ce_recovered", "ce_recovered_from_zero", "kl", "top1_agreement")
LEVELS = {"ce_original": "the model", "ce_mean_ablated": "outputs at their means", "ce_zero_ablated": "outputs at zero"}


def sweep_page(
    content: Mapping[str, Any], *, title: str | None = None, published: Sequence[Mapping[str, Any]] = ()
) -> str:
    """The whole page as text; write it to a file with encoding="utf-8" and open it.

    Args:
        content: of sweep.json.
        title: heading and window title; the model and its layers if None.
        published: curves of others on the same model and layer: {"kind", "source", "points": [{"l0", "ce"}]}.

    Raises:
        ValueError: the sweep has no arm.
    """
    if not content["arms"]:
        raise ValueError("the sweep has no finished arm to draw")
    model = content["model"]
    layers = f"layer{'s' if len(model) > 1 else ''} {', '.join(model)}"
    heading = title if title is not None else f"{next(iter(model.values()))['model_name']}, {layers}"
    arms = [
        {
            **{name: arm[name] for name in ("kind", "architecture", "setting", "value", "seed")},
            "figures": {
                evaluation: {name: mean_over_layers(figures[name]) for name in (*FIGURES, *LEVELS)}
                for evaluation, figures in arm["figures"].items()
            },
        }
        for arm in content["arms"].values()
    ]
    data = {
        "title": heading,
        "evaluations": list(arms[0]["figures"]),
        "columns": FIGURES,
        "levels": LEVELS,
        "arms": arms,
        "published": [dict(curve) for curve in published],
    }
    return document("sweep.html", data, heading, styles=STYLES, scripts=SCRIPTS)
