"""Standard attribution, the baseline of hierarchical attribution: all paths first, cut afterwards (METHODS 2.5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pullback.attribution import nodes as k
from pullback.attribution.graph import Graph
from pullback.attribution.hierarchical.gates import Gate, gated, site_of, written_at


def ungated(graph: Graph, start: Tensor, gate: Gate) -> tuple[Tensor, Tensor]:
    """As `gated`, with attributions along all paths, of which the gate keeps some. What is kept need not be connected:
    the second result is what comes along kept nodes alone."""
    everything = Gate(-math.inf)
    _, total = gated(graph, start, everything)
    own, explained = graph.nodes.kind == k.OWN, graph.indptr.diff() > 0
    keep = start != 0
    at = written_at(graph)
    for depth in at.unique().tolist():
        for competing in (explained & ~keep, ~explained & ~own):
            here = (competing & (at == depth)).nonzero()[:, 0]
            keep[here] = gate.keeps(total[here], site_of(depth), float(start.sum()))
    keep[own] = keep[graph.nodes.feature[own]]
    reached = keep | (~explained & ~own)
    through = torch.zeros_like(total)
    through[reached] = gated(graph.subgraph(reached), start[reached], everything)[1]
    return torch.where(keep, total, 0), through
