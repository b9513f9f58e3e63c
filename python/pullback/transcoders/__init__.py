"""What a dictionary is: sparse transcoders of one layer, sets of them, cross-layer ones, activations and files."""

from pullback.transcoders.activations import Activation, BatchTopK, JumpReLU, ReLU, TopK
from pullback.transcoders.calibration import calibrate_thresholds, to_jumprelu
from pullback.transcoders.crosslayer import CrossLayerTranscoder, SourceLayer
from pullback.transcoders.features import FeatureLayer
from pullback.transcoders.layered import LayeredDictionary
from pullback.transcoders.lazy import HeldRows, MappedRows, Rows, in_memory
from pullback.transcoders.loading import load_transcoders
from pullback.transcoders.protocol import Dictionary
from pullback.transcoders.reading import ModelReading
from pullback.transcoders.sets import TranscoderSet
from pullback.transcoders.transcoder import Transcoder

__all__ = [
    "Activation",
    "BatchTopK",
    "CrossLayerTranscoder",
    "Dictionary",
    "FeatureLayer",
    "HeldRows",
    "JumpReLU",
    "LayeredDictionary",
    "MappedRows",
    "ModelReading",
    "ReLU",
    "Rows",
    "SourceLayer",
    "TopK",
    "Transcoder",
    "TranscoderSet",
    "calibrate_thresholds",
    "in_memory",
    "load_transcoders",
    "to_jumprelu",
]
