"""Effects along all paths of a graph, signed, in units of the target (METHODS 5.1; oracle O7).

With D[t, s] = A[t, s] / a_s, a feature's activation moves by D per unit of its source, so what source s does to target
t along every path is (I - D)^-1[t, s] a_s = a_t (I - A / a)^-1[t, s], the rows of A divided by their targets' values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pullback.attribution import influence as inf

if TYPE_CHECKING:
    from pullback.attribution.graph import Graph


class Effects(NamedTuple):
    """What every node does to m targets, in units of each (of its pre-activation, logit or value), float64.

    Over the leaves (embeddings, positions, errors, biases, own leaves), `total` and `dropped` sum to the target.
    """

    targets: Tensor  # (m) nodes
    total: Tensor  # (m, n_nodes), along all paths; of a target on itself, its value
    direct: Tensor  # (m, n_nodes), along the edge between them
    dropped: Tensor  # (m), what dropped mass does along all paths

    @property
    def indirect(self) -> Tensor:
        """Along all paths of more than one edge, (m, n_nodes)."""
        itself = torch.zeros_like(self.total).scatter_(
            1, self.targets[:, None], self.total.gather(1, self.targets[:, None])
        )
        return self.total - self.direct - itself


def values(graph: Graph) -> Tensor:
    """What each node's input sums to, (n_nodes) float64; 1 for leaves."""
    value = graph.nodes.preactivation.double()
    return torch.where(value.isnan(), 1.0, value)


def inverses(graph: Graph) -> Tensor:
    """1 over them, (n_nodes); 0 for a node whose value is 0, which passes nothing on."""
    value = values(graph)
    return torch.where(value == 0, 0.0, 1 / value)


def effects(graph: Graph, targets: Tensor) -> Effects:
    """One pass from the top for each target: memory follows m, never n_nodes^2.

    A feature on the way passes on what it is given in proportion to its pre-activation: its gate is frozen.
    """
    value, inverse = values(graph), inverses(graph)
    flow = inf.Flow(graph, graph.weights, inverse, sizes=False)
    direct = torch.zeros(len(targets), graph.n_nodes, dtype=torch.float64)
    for into, t in zip(direct, targets.tolist(), strict=True):
        row = slice(int(graph.indptr[t]), int(graph.indptr[t + 1]))
        into[graph.sources[row].long()] = graph.weights[row].double()
    total = direct.clone()
    for along_all in total:
        along_all.copy_(flow(along_all))
    dropped = graph.dropped.double()
    through = total @ (dropped * inverse)
    total.scatter_(1, targets[:, None], value[targets][:, None])
    return Effects(targets, total, direct, dropped[targets] + through)


def shares(graph: Graph, targets: Tensor) -> Tensor:
    """(I - A / a)^-1 for some targets, (m, n_nodes) float64: the share of each that goes through each node, 1 for
    itself."""
    return effects(graph, targets).total / values(graph)[targets][:, None]
