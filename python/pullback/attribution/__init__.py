"""Attribution graphs: exact, signed, summing to what they explain."""

from pullback.attribution.asked import DirectionTarget, FeatureTarget, LogitDifference, LogitTarget
from pullback.attribution.build import attribute, attribute_local
from pullback.attribution.effects import Effects
from pullback.attribution.graph import Graph, Scores
from pullback.attribution.memory import MemoryEstimate, memory_estimate
from pullback.attribution.settings import Settings

__all__ = [
    "DirectionTarget",
    "Effects",
    "FeatureTarget",
    "Graph",
    "LogitDifference",
    "LogitTarget",
    "MemoryEstimate",
    "Scores",
    "Settings",
    "attribute",
    "attribute_local",
    "memory_estimate",
]
