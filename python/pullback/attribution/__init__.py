"""Attribution graphs: exact, signed, summing to what they explain."""

from pullback.attribution.asked import DirectionTarget, FeatureTarget, LogitDifference, LogitTarget
from pullback.attribution.attention import HeadLoadings, QKAttribution, head_loadings, qk_attribution
from pullback.attribution.build import attribute, attribute_local
from pullback.attribution.collection import GraphCollection
from pullback.attribution.effects import Effects
from pullback.attribution.exchange.view import GraphView
from pullback.attribution.graph import Graph, Scores
from pullback.attribution.hierarchical import Hierarchical, ModelAttribution, attribute_through_model, hierarchical
from pullback.attribution.many import attribute_many, attribute_on_devices, read_index, write_index
from pullback.attribution.memory import MemoryEstimate, memory_estimate
from pullback.attribution.paths import FeatureFilter, PathGraph, Paths, greedy_paths
from pullback.attribution.pullbacks import (
    InputAttribution,
    MeanActivations,
    MeanAttribution,
    Pullback,
    TokenEffects,
    deembed,
    input_attribution,
    logit_effects,
    mean_attribution,
    pullback,
)
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
    "FeatureFilter",
    "FeatureTarget",
    "Graph",
    "GraphCollection",
    "GraphView",
    "HeadLoadings",
    "Hierarchical",
    "InputAttribution",
    "Interference",
    "LogitDifference",
    "LogitTarget",
    "MeanActivations",
    "MeanAttribution",
    "MemoryEstimate",
    "ModelAttribution",
    "PathGraph",
    "Paths",
    "Pullback",
    "QKAttribution",
    "Scores",
    "Settings",
    "TokenEffects",
    "VirtualWeights",
    "attribute",
    "attribute_local",
    "attribute_many",
    "attribute_on_devices",
    "attribute_through_model",
    "deembed",
    "expected_attributions",
    "greedy_paths",
    "head_loadings",
    "hierarchical",
    "input_attribution",
    "interference",
    "logit_effects",
    "mean_attribution",
    "memory_estimate",
    "pullback",
    "qk_attribution",
    "read_index",
    "virtual_weights",
    "write_index",
]
