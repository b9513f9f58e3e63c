"""Attribution graphs: exact, signed, summing to what they explain."""

from pullback.attribution.asked import DirectionTarget, FeatureTarget, LogitDifference, LogitTarget
from pullback.attribution.attention import HeadLoadings, QKAttribution, head_loadings, qk_attribution
from pullback.attribution.build import attribute, attribute_local
from pullback.attribution.effects import Effects
from pullback.attribution.graph import Graph, Scores
from pullback.attribution.memory import MemoryEstimate, memory_estimate
from pullback.attribution.settings import Settings
from pullback.attribution.weights import (
    ExpectedAttributions,
    Interference,
    VirtualWeights,
    expected_attributions,
    interference,
    virtual_weights,
)

__all__ = [
    "DirectionTarget",
    "Effects",
    "ExpectedAttributions",
    "FeatureTarget",
    "Graph",
    "HeadLoadings",
    "Interference",
    "LogitDifference",
    "LogitTarget",
    "MemoryEstimate",
    "QKAttribution",
    "Scores",
    "Settings",
    "VirtualWeights",
    "attribute",
    "attribute_local",
    "memory_estimate",
    "expected_attributions",
    "head_loadings",
    "interference",
    "qk_attribution",
    "virtual_weights",
]
