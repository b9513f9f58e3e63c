"""Pullbacks of Dunefsky, Chlenski and Nanda (2024): what features read, by weights alone and on a prompt."""

from pullback.attribution.pullbacks.dependent import InputAttribution, input_attribution
from pullback.attribution.pullbacks.effects import TokenEffects
from pullback.attribution.pullbacks.invariant import Pullback, pullback
from pullback.attribution.pullbacks.mean import MeanAttribution, mean_attribution
from pullback.attribution.pullbacks.sums import MeanActivations
from pullback.attribution.pullbacks.tokens import deembed, logit_effects

__all__ = [
    "InputAttribution",
    "MeanActivations",
    "MeanAttribution",
    "Pullback",
    "TokenEffects",
    "deembed",
    "input_attribution",
    "logit_effects",
    "mean_attribution",
    "pullback",
]
