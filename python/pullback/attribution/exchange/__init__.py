"""Graphs in other tools' forms: Neuronpedia's JSON and its page, circuit-tracer's graphs, tables."""

from pullback.attribution.exchange.upload import upload_neuronpedia
from pullback.attribution.exchange.view import GraphView

__all__ = ["GraphView", "upload_neuronpedia"]
