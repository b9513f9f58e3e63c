"""Hierarchical attribution: circuits found in one pass from a target down, cut wherever a node carries too little."""

from pullback.attribution.hierarchical.attention import Attended, attended
from pullback.attribution.hierarchical.circuit import Hierarchical, circuit_of, hierarchical
from pullback.attribution.hierarchical.gates import Gate, entry_thresholds

__all__ = ["Attended", "Gate", "Hierarchical", "attended", "circuit_of", "entry_thresholds", "hierarchical"]
