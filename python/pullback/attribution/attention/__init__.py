"""What attention does in a circuit: the heads that carry an edge, and why a head looks where it looks."""

from pullback.attribution.attention.loadings import HeadLoadings, head_loadings

__all__ = ["HeadLoadings", "head_loadings"]
