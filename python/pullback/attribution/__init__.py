"""Attribution graphs: exact, signed, summing to what they explain."""

from pullback.attribution.build import attribute
from pullback.attribution.collection import GraphCollection
from pullback.attribution.graph import Graph, Scores

__all__ = ["Graph", "GraphCollection", "Scores", "attribute"]
