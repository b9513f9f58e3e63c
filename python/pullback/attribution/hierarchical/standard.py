"""Standard attribution, the baseline of hierarchical attribution: all paths first, cut afterwards (METHODS 2.5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pullback.attribution import nodes as k
from pullback.attribution.graph import Graph
from pullback.attribution.hierarchical.gates import Gate, gated


def ungated(graph: Graph, start: Tensor, gate: Gate) -> tuple[Tensor, Tensor]:
    """As `gated`, with attributions along all paths, of which the gate keeps some. What is kept need not be connected:
    the second result is what comes along kept nodes alone."""
    everything = Gate(-math.inf)
    _, total = gated(graph, start, everything)
    own, explained = graph.nodes.kind == k.OWN, graph.indptr.diff() > 0
    keep = start != 0
    for depth in graph.nodes.depth.unique():
        for competing in (explained & ~keep, ~explained & ~own):
            here = (competing & (graph.nodes.depth == depth)).nonzero()[:, 0]
            if len(here):
                layer = int(graph.nodes.layer[here[0]])
                keep[here] = gate.keeps(total[here], layer, float(start.sum()))
    keep[own] = keep[graph.nodes.feature[own]]
    reached = keep | (~explained & ~own)
    through = torch.zeros_like(total)
    through[reached] = gated(graph.subgraph(reached), start[reached], everything)[1]
    return torch.where(keep, total, 0), through
