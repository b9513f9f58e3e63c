"""Attribution graphs: exact, signed, summing to what they explain."""

from pullback.attribution.build import attribute
from pullback.attribution.graph import Graph, Scores
from pullback.attribution.memory import MemoryEstimate, memory_estimate

__all__ = ["Graph", "MemoryEstimate", "Scores", "attribute", "memory_estimate"]
