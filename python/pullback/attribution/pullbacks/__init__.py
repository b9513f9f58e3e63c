"""Pullbacks of Dunefsky, Chlenski and Nanda (2024): what features read, by weights alone and on a prompt."""

from pullback.attribution.pullbacks.dependent import InputAttribution, input_attribution
from pullback.attribution.pullbacks.effects import TokenEffects
from pullback.attribution.pullbacks.invariant import Pullback, pullback
from pullback.attribution.pullbacks.tokens import deembed, logit_effects

__all__ = ["deembed", "logit_effects", "TokenEffects", "InputAttribution", "Pullback", "input_attribution", "pullback"]
