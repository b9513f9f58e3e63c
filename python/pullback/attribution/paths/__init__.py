"""Greedy computational paths through transcoder features and attention heads, and the graphs they make."""

from pullback.attribution.paths.filters import FeatureFilter
from pullback.attribution.paths.graph import PathGraph
from pullback.attribution.paths.greedy import greedy_paths, paths_of
from pullback.attribution.paths.paths import Path, Paths
from pullback.attribution.paths.search import SearchSettings

__all__ = ["FeatureFilter", "Path", "PathGraph", "Paths", "SearchSettings", "greedy_paths", "paths_of"]
