"""Attribution graphs: exact, signed, summing to what they explain."""

from pullback.attribution.asked import DirectionTarget, FeatureTarget, LogitDifference, LogitTarget
from pullback.attribution.build import attribute, attribute_local
from pullback.attribution.collection import GraphCollection
from pullback.attribution.effects import Effects
from pullback.attribution.graph import Graph, Scores
from pullback.attribution.many import attribute_many, attribute_on_devices, read_index, write_index
from pullback.attribution.settings import Settings

__all__ = [
    "DirectionTarget",
    "Effects",
    "FeatureTarget",
    "Graph",
    "GraphCollection",
    "LogitDifference",
    "LogitTarget",
    "Scores",
    "Settings",
    "attribute",
    "attribute_local",
    "attribute_many",
    "attribute_on_devices",
    "read_index",
    "write_index",
]
