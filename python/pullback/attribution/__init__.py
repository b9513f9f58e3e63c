"""Attribution graphs: exact, signed, summing to what they explain."""

from pullback.attribution.attention import HeadLoadings, head_loadings
from pullback.attribution.build import attribute
from pullback.attribution.graph import Graph, Scores

__all__ = ["Graph", "HeadLoadings", "Scores", "attribute", "head_loadings"]
