"""Attribution graphs: exact, signed, summing to what they explain."""

from pullback.attribution.attention import HeadLoadings, QKAttribution, head_loadings, qk_attribution
from pullback.attribution.build import attribute
from pullback.attribution.graph import Graph, Scores

__all__ = [
    "Graph",
    "HeadLoadings",
    "QKAttribution",
    "Scores",
    "attribute",
    "head_loadings",
    "qk_attribution",
]
