"""What attention does in a circuit: the heads that carry an edge, and why a head looks where it looks."""

from pullback.attribution.attention.loadings import HeadLoadings, head_loadings
from pullback.attribution.attention.scores import QKAttribution, qk_attribution

__all__ = ["HeadLoadings", "QKAttribution", "head_loadings", "qk_attribution"]
