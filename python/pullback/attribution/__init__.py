"""Attribution graphs: exact, signed, summing to what they explain."""

from pullback.attribution.attention import HeadLoadings, QKAttribution, head_loadings, qk_attribution
from pullback.attribution.build import attribute
from pullback.attribution.graph import Graph, Scores
from pullback.attribution.weights import (
    ExpectedAttributions,
    Interference,
    VirtualWeights,
    expected_attributions,
    interference,
    virtual_weights,
)

__all__ = [
    "ExpectedAttributions",
    "Graph",
    "HeadLoadings",
    "Interference",
    "QKAttribution",
    "Scores",
    "VirtualWeights",
    "attribute",
    "expected_attributions",
    "head_loadings",
    "interference",
    "qk_attribution",
    "virtual_weights",
]
