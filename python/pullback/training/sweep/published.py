"""Published figures of transcoders and autoencoders (Dunefsky et al. 2024 and its code), to set a sweep of the same
model and layer beside. They are data: to reproduce them takes those models and that text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SOURCE = "Dunefsky et al. 2024"

# Of one layer: L0 and the loss with that layer's MLP replaced, by the weight of the L1 penalty.
CURVES: tuple[dict[str, Any], ...] = (
    {
        "model": "pythia-410m",
        "layer": 15,
        "kind": "transcoder",
        "points": [
            {"value": 2.5e-5, "l0": 203.8, "ce": 3.3412},
            {"value": 3e-5, "l0": 148.2, "ce": 3.3441},
            {"value": 4e-5, "l0": 82.7, "ce": 3.3491},
            {"value": 5.5e-5, "l0": 44.04, "ce": 3.3549},
            {"value": 7e-5, "l0": 27.45, "ce": 3.3682},
        ],
    },
    {
        "model": "pythia-410m",
        "layer": 15,
        "kind": "sae",
        "points": [
            {"value": 4e-5, "l0": 505.3, "ce": 3.3369},
            {"value": 7e-5, "l0": 109.9, "ce": 3.3512},
            {"value": 8.5e-5, "l0": 55.07, "ce": 3.3596},
            {"value": 1e-4, "l0": 31.5, "ce": 3.3678},
        ],
    },
)

# Of the figures whose points were not published: the loss axis of the plot.
RANGES: tuple[dict[str, Any], ...] = (
    {"model": "gpt2-small", "layer": 8, "ce": (3.60, 3.68)},
    {"model": "pythia-410m", "layer": 15, "ce": (3.32, 3.42)},
    {"model": "pythia-1.4b", "layer": 15, "ce": (3.10, 3.17)},
)

# Of all layers at once: GPT-2 small with the MLPs of layers 0 to 10 replaced.
REPLACED: dict[str, Any] = {
    "model": "gpt2-small",
    "layers": tuple(range(11)),
    "ce_original": 3.5928,
    "ce_replaced": 4.2337,
    "ce_replaced_but_layer_0": 4.0624,
    "ce_zero_ablated": 10.9406,
    "kl": 0.6684,
}
_ALIASES = {"gpt2": "gpt2-small"}


def published_curves(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The curves of the model and the layer of a sweep.json; none for a sweep of several layers."""
    if len(content["model"]) != 1:
        return []
    ((layer, reading),) = content["model"].items()
    name = str(reading["model_name"]).rsplit("/", 1)[-1].lower()
    name = _ALIASES.get(name, name)
    return [
        {**curve, "source": SOURCE} for curve in CURVES if (curve["model"], str(curve["layer"])) == (name, str(layer))
    ]
