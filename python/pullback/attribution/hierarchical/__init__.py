"""Hierarchical attribution: circuits found in one pass from a target down, cut wherever a node carries too little."""

from pullback.attribution.hierarchical.attention import Attended, attended
from pullback.attribution.hierarchical.circuit import Hierarchical, circuit_of, hierarchical
from pullback.attribution.hierarchical.gates import Gate, entry_thresholds
from pullback.attribution.hierarchical.live import LivePass
from pullback.attribution.hierarchical.model_attribution import ModelAttribution
from pullback.attribution.hierarchical.through_model import attribute_through_model

__all__ = [
    "Attended",
    "Gate",
    "Hierarchical",
    "LivePass",
    "ModelAttribution",
    "attended",
    "attribute_through_model",
    "circuit_of",
    "entry_thresholds",
    "hierarchical",
]
