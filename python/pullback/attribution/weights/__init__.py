"""Global weights: how features are wired, whatever the prompt, and how much of that is used."""

from pullback.attribution.weights.expected import ExpectedAttributions, PairWeights, expected_attributions
from pullback.attribution.weights.interference import Interference, interference
from pullback.attribution.weights.virtual import VirtualWeights, virtual_weights

__all__ = [
    "ExpectedAttributions",
    "Interference",
    "PairWeights",
    "VirtualWeights",
    "expected_attributions",
    "interference",
    "virtual_weights",
]
