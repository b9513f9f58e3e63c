"""Pullbacks of Dunefsky, Chlenski and Nanda (2024): what features read, by weights alone and on a prompt."""

from pullback.attribution.pullbacks.dependent import InputAttribution, input_attribution
from pullback.attribution.pullbacks.invariant import Pullback, pullback

__all__ = ["InputAttribution", "Pullback", "input_attribution", "pullback"]
