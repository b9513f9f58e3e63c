"""Attribution from one target down the edges of a graph, with a gate at every node (Ge et al. 2024; METHODS 2.4).

The attribution of node v is a_v dt/da_v. With A[t, s] the contribution of s to what t sums to, it is the sum over the
nodes t that read v of attr[t] A[t, v] / value[t]: one pass from the top, as autograd visits them. A node that the gate
cuts passes nothing on, so what lies below counts only along paths through nodes that were kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pullback.attribution import influence as inf
from pullback.attribution.effects import values

if TYPE_CHECKING:
    from pullback.attribution.graph import Graph

MODES = ("signed", "abs")


@dataclass(frozen=True)
class Gate:
    """What of a layer is kept: attributions above a threshold, or the largest few.

    Attributes:
        tau: the threshold; or one for each layer, where a layer that is not named keeps all (-inf).
        mode: "signed" compares the attribution, so negative ones are cut; "abs" its absolute value.
        relative: tau counts in units of the target's absolute value.
        top: keep so many nodes of a layer instead, tau aside.

    Raises:
        ValueError: another mode, or a `top` that is negative.
    """

    tau: float | Mapping[int, float] = 0.1
    mode: str = "signed"
    relative: bool = False
    top: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"hierarchical: mode must be 'signed' or 'abs', got {self.mode!r}")
        if self.top is not None and self.top < 0:
            raise ValueError(f"hierarchical: top must be 0 or more nodes of a layer, got {self.top}")

    def keeps(self, attribution: Tensor, layer: int, target: float) -> Tensor:
        """Mask over the attributions of nodes of one layer, on a target of this value."""
        size = attribution.abs() if self.mode == "abs" else attribution
        if self.top is not None:
            best = torch.argsort(size, descending=True, stable=True)[: self.top]
            return torch.zeros_like(size, dtype=torch.bool).index_fill_(0, best, True) & (attribution != 0)
        tau = self.tau.get(layer, -math.inf) if isinstance(self.tau, Mapping) else self.tau
        return size > (tau * abs(target) if self.relative else tau)


def gated(graph: Graph, target: int, gate: Gate) -> tuple[Tensor, Tensor]:
    """Attribution of every node to one target, (n_nodes) float64, zero where the gate cut it; and the same with leaves
    left as they came, whose sum is what the target receives through kept nodes.

    The target's own attribution is its value and is not gated. Raises ValueError for edges that are not finite.
    """
    value = values(graph)
    inverse = torch.where(value == 0, 0.0, 1 / value)
    whole = float(value[target])
    total = torch.zeros(graph.n_nodes, dtype=torch.float64)
    total[target] = value[target]
    explained = graph.indptr.diff() > 0
    for run in inf.runs_of(graph, graph.weights.double(), inverse):
        layer = int(graph.nodes.layer[run.targets[0]])
        cut = ~gate.keeps(total[run.targets], layer, whole)
        total[run.targets[cut & (run.targets != target)]] = 0.0
        into = total[run.targets] * run.scale
        total.index_add_(0, run.sources, torch.repeat_interleave(into, run.counts).mul_(run.sizes))
    if not bool(torch.isfinite(total).all()):
        raise ValueError("hierarchical: edges of this graph are NaN or infinite, so it has no attributions")
    kept = total.clone()
    for layer in graph.nodes.layer[~explained].unique().tolist():
        leaves = (~explained & (graph.nodes.layer == layer)).nonzero()[:, 0]
        kept[leaves[~gate.keeps(total[leaves], layer, whole)]] = 0.0
    return kept, total
