"""The part of the study of greater-than that no other has: years, thresholds and paths."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pullback.attribution import LogitDifference, greedy_paths
from pullback.lens import Lens
from pullback.studies import reference
from pullback.studies.behaviours import GreaterThan, Years
from pullback.studies.thresholds import thresholds
from pullback.studies.years import YearCurve, year_curve
from pullback.transcoders import LayeredDictionary

ROOT = ("40", "20")  # years whose difference of logits paths lead to
PROMPT = "35"


def study_years(
    lens: Lens, sets: LayeredDictionary, behaviour: GreaterThan, layer: int | None, against: bool
) -> dict[str, Any]:
    """Curves over features and neurons, thresholds of the best features, the best paths to a difference of years; and
    the published figures beside them, if asked for or if model and transcoders have the sizes of the published ones.

    Raises ValueError where published figures are asked for, of a model or transcoders that are not those.
    """
    years = behaviour.prompts()
    d_sae = sets[sets.layers[0]].d_sae
    published = reference.is_published(lens.model_name, lens.n_layers, lens.d_model, d_sae)
    if against and not published:
        raise ValueError(
            f"study greater-than: the published figures are of GPT-2 small and its published transcoders of "
            f"{reference.D_SAE} features; this is {lens.model_name} with {lens.n_layers} layers and {d_sae} features"
        )
    if layer is None:
        layer = reference.LAYER if published else most_needed(lens, sets, years)
    curve = year_curve(lens, sets, years, layer)
    best = thresholds(lens, sets, years, layer, curve.ranking[:6])
    found = {
        "curve": asdict(curve),
        "names": years.names,
        "summary": summary(curve),
        "thresholds": [asdict(one) | {"overlap": one.overlap()} for one in best],
        "paths": best_paths(lens, sets, behaviour, years),
    }
    if published:
        found["reference"] = reference.beside(measured(curve))
    return found


def most_needed(lens: Lens, sets: LayeredDictionary, years: Years) -> int:
    """The layer without whose features the difference of probabilities is smallest."""
    return min(sets.layers, key=lambda i: year_curve(lens, sets, years, i, most=0, without=0).features[0])


def summary(curve: YearCurve) -> str:
    few = min(20, len(curve.features) - 1)
    neurons = f", {few} neurons {curve.neurons[few]:.3f}" if curve.neurons else ""
    return (
        f"probability difference {curve.original:.3f}, with all features {curve.full:.3f}, with none "
        f"{curve.features[0]:.3f}; {few} features {curve.features[few]:.3f}{neurons}"
    )


def best_paths(lens: Lens, sets: LayeredDictionary, behaviour: GreaterThan, years: Years) -> dict[str, Any]:
    """The greedy paths to the difference of two years' logits, on one prompt."""
    row = years.names.index(PROMPT) if PROMPT in years.names else 0
    high, low = (behaviour.years.get(name) for name in ROOT)
    if high is None or low is None:
        high, low = int(years.ids[-1]), int(years.ids[0])
    paths = greedy_paths(lens, sets, years.tokens[row], LogitDifference((high, low)), num_iters=3, num_branches=15)
    listed = [{"nodes": list(p.nodes), "contribution": p.contribution} for p in paths if len(p) > 1]
    return {
        "prompt": lens.to_str_tokens(years.tokens[row]),
        "root": " - ".join(lens.to_str_tokens(years.ids.new_tensor([high, low]))),
        "value": paths.root_value,
        "paths": listed,
    }


def measured(curve: YearCurve) -> dict[str, float]:
    """Under the names of the published figures."""
    found = {
        "probability difference, the model": curve.original,
        "with all features of MLP 10": curve.full,
        "MLP 10 removed": curve.features[0],
    }
    found |= {f"{k} features": curve.features[k] for k in (14, 20, 21, 22, 23, 24) if k < len(curve.features)}
    if len(curve.neurons) > 20:
        found["20 neurons"] = curve.neurons[20]
    if 5315 in curve.without:
        found["without feature 5315"] = curve.without[5315]
    return found
