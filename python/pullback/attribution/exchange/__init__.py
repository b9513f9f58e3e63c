"""Graphs in other tools' forms: Neuronpedia's JSON and its page, circuit-tracer's graphs, tables."""
