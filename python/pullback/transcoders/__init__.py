"""What a dictionary is: sparse transcoders of one layer, sets of them, their activations and their files."""

from pullback.transcoders.activations import Activation, BatchTopK, JumpReLU, ReLU, TopK
from pullback.transcoders.protocol import Dictionary
from pullback.transcoders.reading import ModelReading
from pullback.transcoders.sets import TranscoderSet, load_transcoders
from pullback.transcoders.transcoder import Transcoder

__all__ = [
    "Activation",
    "BatchTopK",
    "Dictionary",
    "JumpReLU",
    "ModelReading",
    "ReLU",
    "TopK",
    "Transcoder",
    "TranscoderSet",
    "load_transcoders",
]
