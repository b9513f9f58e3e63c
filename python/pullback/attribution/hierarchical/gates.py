"""Attribution from one target down the edges of a graph, with a gate at every node (Ge et al. 2024; METHODS 2.4).

The attribution of node v is a_v dt/da_v. With A[t, s] the contribution of s to what t sums to, it is the sum over the
nodes t that read v of attr[t] A[t, v] / value[t]: one pass from the top, as autograd visits them. A node that the gate
cuts passes nothing on, so what lies below counts only along paths through nodes that were kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from pullback.attribution import influence as inf
from pullback.attribution import nodes as k
from pullback.attribution.effects import inverses
from pullback.lens.depth import at_attention, block_of
from pullback.ops.edges import csr_flow

if TYPE_CHECKING:
    from pullback.attribution.graph import Graph

MODES = ("signed", "abs")
EMBED, POS_EMBED = -1, -2
Thresholds: TypeAlias = float | Mapping[int | str, float]


@dataclass(frozen=True)
class Gate:
    """What of a site is kept: attributions above a threshold, or the largest few.

    Sites are where nodes write: blocks.{l}.hook_mlp_out and hook_attn_out, hook_embed, hook_pos_embed.

    Attributes:
        tau: the threshold; or one for each layer or site, where the site goes first, and one that is not named keeps
            all (-inf).
        mode: "signed" compares the attribution, so negative ones are cut; "abs" its absolute value.
        relative: tau counts in units of the target's absolute value.
        top: keep so many nodes of a site instead of those above a threshold.

    Raises:
        ValueError: another mode, or a `top` that is negative, or given beside a threshold.
    """

    tau: Thresholds = 0.1
    mode: str = "signed"
    relative: bool = False
    top: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"hierarchical: mode must be 'signed' or 'abs', got {self.mode!r}")
        if self.top is not None and self.top < 0:
            raise ValueError(f"hierarchical: top must be 0 or more nodes of a site, got {self.top}")
        if self.top is not None and (self.relative or self.tau != Gate.tau):
            raise ValueError("hierarchical: top keeps nodes by number, tau and relative by size; give one or the other")

    def keeps(self, attribution: Tensor, site: str, target: float) -> Tensor:
        """Mask over the attributions of nodes of one site, on a target of this value."""
        size = attribution.abs() if self.mode == "abs" else attribution
        if self.top is not None:
            best = torch.argsort(size, descending=True, stable=True)[: self.top]
            return torch.zeros_like(size, dtype=torch.bool).index_fill_(0, best, True) & (attribution != 0)
        tau = self._threshold(site)
        return size > (tau * abs(target) if self.relative else tau)

    def _threshold(self, site: str) -> float:
        if not isinstance(self.tau, Mapping):
            return self.tau
        layer = int(site.split(".")[1]) if site.startswith("blocks.") else -1
        return self.tau.get(site, self.tau.get(layer, -math.inf))


def gated(graph: Graph, start: Tensor, gate: Gate) -> tuple[Tensor, Tensor]:
    """Attribution of every node to what is explained, (n_nodes) float64, zero where the gate cut it; and the same with
    leaves left as they came, whose sum is what the target receives through kept nodes. An own leaf is not gated: it has
    what it adds through its target, which is 0 where that was cut.

    `start` (n_nodes) is what the target is made of: of one node its value, of a difference two values of either sign, 0
    elsewhere. These nodes are not gated. Raises ValueError for edges that are not finite.
    """
    return _Passes(graph, start)(gate)


class _Passes:
    """Passes over one graph, each with a gate of its own."""

    def __init__(self, graph: Graph, start: Tensor) -> None:
        self.start = start.double()
        self.whole, self.free = float(self.start.sum()), self.start != 0
        at = written_at(graph)
        self.graph, scale = graph, inverses(graph)
        self.levels = [(site_of(int(at[nodes[0]])), nodes, scale[nodes]) for nodes in inf.levels(graph)]
        leaf = (graph.indptr.diff() == 0) & ~graph.of_kind(k.OWN)  # which are no choice: they are part of their targets
        self.leaves = [(site_of(depth), (leaf & (at == depth)).nonzero()[:, 0]) for depth in at[leaf].unique().tolist()]

    def __call__(self, gate: Gate) -> tuple[Tensor, Tensor]:
        total = self.start.clone()
        graph = self.graph
        for site, nodes, scale in self.levels:
            cut = ~gate.keeps(total[nodes], site, self.whole) & ~self.free[nodes]
            total[nodes[cut]] = 0.0
            csr_flow(nodes, nodes, graph.indptr, graph.sources, scale, graph.weights, total, sizes=False)
        inf.must_be_finite(total)
        kept = total.clone()
        for site, leaves in self.leaves:
            kept[leaves[~gate.keeps(total[leaves], site, self.whole)]] = 0.0
        return kept, total


def written_at(graph: Graph) -> Tensor:
    """The depth at which each node writes, (n_nodes); EMBED and POS_EMBED where the stream starts."""
    n = graph.nodes
    by_attention = graph.of_kind(k.BIAS) & (n.feature == k.BIAS_KINDS.index("attn"))
    inside = torch.where(by_attention, at_attention(n.layer), n.depth)
    start = torch.where(n.kind == k.POSITION, POS_EMBED, EMBED)
    return torch.where(n.layer < 0, start, inside)


def site_of(depth: int) -> str:
    if depth < 0:
        return "hook_embed" if depth == EMBED else "hook_pos_embed"
    layer = block_of(depth)
    return f"blocks.{layer}.hook_{'attn' if depth == at_attention(layer) else 'mlp'}_out"


def entry_thresholds(graph: Graph, start: Tensor, mode: str = "signed", levels: int = 48) -> Tensor:
    """The largest threshold, as a share of the target, at which each node is kept, (n_nodes) float64, 0 for none: a
    ranking by hierarchical attribution, over thresholds from 1 down to 1e-4.

    Circuits of lower thresholds need not hold those of higher ones (a path that is cut no longer takes anything away),
    so a node ranks by when it is kept first; of those kept first at one threshold, by attribution there.
    """
    entered = torch.zeros(graph.n_nodes, dtype=torch.float64)
    taus = torch.logspace(0, -4, levels, dtype=torch.float64)
    passes = _Passes(graph, start)
    for tau, next_tau in zip(taus.tolist(), [*taus[1:].tolist(), 0.0], strict=True):
        kept, _ = passes(Gate(tau, mode, relative=True))
        fresh = (kept != 0) & (entered == 0)
        size = kept[fresh].abs()
        entered[fresh] = next_tau + (tau - next_tau) * size / size.max().clamp(min=1e-300) if len(size) else size
    return entered
