"""Graphs of many prompts, seen together."""

from pullback.attribution.collection.collection import GraphCollection

__all__ = ["GraphCollection"]
