"""Sweeps: a grid of transcoders and autoencoders on the same activations, measured on the same tokens."""

from pullback.training.sweep.grid import KINDS, KNOBS, Arm
from pullback.training.sweep.run import sweep
from pullback.training.sweep.summary import summary

__all__ = ["KINDS", "KNOBS", "Arm", "summary", "sweep"]
