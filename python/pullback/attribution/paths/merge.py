"""From paths to one graph: Algorithm 2 of Dunefsky et al., and the nodes that make it sum (METHODS 1.9)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.attribution import nodes as k
from pullback.attribution.paths.graph import PathGraph
from pullback.attribution.paths.nodes import PRUNED, PathNodes
from pullback.attribution.paths.paths import Paths
from pullback.attribution.paths.readings import Readings
from pullback.lens.depth import at_attention, at_mlp

# A sum of some hundred terms is not missed by more than so many units in the last place of their sizes. Ratios of norms
# of single vectors may be large, and cancel: a term is then a difference of larger ones.
ROUNDING = {"frozen": 64, "ratio": 6400}


def path_graph(paths: Paths) -> PathGraph:
    if not paths.settings.raw:
        raise ValueError("paths: capped contributions do not sum, so they make no graph; search with raw=True")
    merged = _merged(paths)
    graph = PathGraph(
        nodes=merged.nodes,
        ids=merged.nodes.ids(paths.levels[0].nodes),
        contribution=merged.contribution,
        activation=merged.activation,
        sources=merged.children,
        targets=merged.parents,
        weights=merged.weights,
        meta=paths.meta,
    )
    return _with_rest(graph, merged, paths)


@dataclass(frozen=True)
class _Merged:
    """Nodes that paths share, and edges between them: a prefix that several paths have counts once."""

    nodes: PathNodes
    contribution: Tensor
    activation: Tensor
    readings: Readings
    children: Tensor
    parents: Tensor
    weights: Tensor
    mass: Tensor  # (n), sum of the sizes of what paths bring to each node


def _merged(paths: Paths) -> _Merged:
    levels, used = paths.levels, _on_a_path(paths)
    parts = [level[which] for level, which in zip(levels, used, strict=True)]
    nodes = PathNodes.joined([part.nodes for part in parts])
    first, number = _first_of_each(nodes.keys())
    sizes = [len(part) for part in parts]
    numbers = number.split(sizes)

    edges: list[tuple[Tensor, Tensor, Tensor]] = []
    for n in range(1, len(levels)):
        where = torch.full_like(used[n - 1], -1, dtype=torch.long)
        where[used[n - 1]] = numbers[n - 1]
        edges.append((numbers[n], where[parts[n].parent], parts[n].contribution))
    children, parents, weights = (
        (torch.cat(column) for column in zip(*edges, strict=True))
        if edges
        else (number[:0], number[:0], parts[0].contribution[:0])
    )
    one, edge = _first_of_each(parents * len(first) + children)
    total = weights.new_zeros(len(one)).index_add(0, edge, weights)

    def summed(values: list[Tensor]) -> Tensor:
        flat = torch.cat(values)
        return flat.new_zeros(len(first), *flat.shape[1:]).index_add(0, number, flat)

    readings = Readings.joined([part.readings for part in parts])
    return _Merged(
        nodes=nodes[first],
        contribution=summed([part.contribution for part in parts]),
        activation=torch.cat([part.activation for part in parts])[first],
        readings=Readings(
            vectors=summed([part.readings.vectors for part in parts]),
            pos=readings.pos[first],
            first=readings.first[first],
            below=readings.below[first],
            own=summed([part.readings.own for part in parts]),
        ),
        children=children[one],
        parents=parents[one],
        weights=total,
        mass=weights.new_zeros(len(first)).index_add(0, parents, weights.abs()),
    )


def _on_a_path(paths: Paths) -> list[Tensor]:
    """Which nodes of the tree lie on a path that is kept, (n) bool a level; the root always does."""
    used = [kept.clone() for kept in paths.kept]
    for n in range(len(used) - 1, 0, -1):
        used[n - 1][paths.levels[n].parent[used[n]]] = True
    used[0][:] = True
    return used


def _first_of_each(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Of n keys, the places of the m different ones, in the order they come in, and the number of each key's, (n)."""
    _, inverse = keys.unique(return_inverse=True)
    n = int(inverse.max()) + 1 if len(keys) else 0
    places = torch.arange(len(keys), device=keys.device)
    first = torch.full((n,), len(keys), device=keys.device).scatter_reduce(0, inverse, places, "amin")
    order = torch.argsort(first)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(n, device=keys.device)
    return first[order], rank[inverse]


def _with_rest(graph: PathGraph, merged: _Merged, paths: Paths) -> PathGraph:
    """The graph with an error node, a bias node and a node for all else that was not followed, of every parent.

    Where leaves are candidates of the search, those that it did not take are among the rest.
    """
    parents = graph.targets.unique()
    readings = merged.readings[parents]
    rest = graph.contribution[parents] - graph.incoming()[parents]
    added = []
    if not paths.settings.leaves:
        errors = _errors(paths, readings)
        reference = paths.settings.reference
        biases = _reference_biases(paths, graph.nodes[parents]) if reference else _biases(paths, readings)
        added = [("errors", k.ERROR, errors), ("biases", k.BIAS, biases)]
        rest = rest - errors - biases
    # Where all was followed, rounding is what is left.
    size = merged.mass[parents] + graph.contribution[parents].abs()
    units = ROUNDING[paths.settings.ln] * torch.finfo(rest.dtype).eps
    rest = rest.where(rest.abs() > units * size, 0)
    for name, kind, weights in (*added, ("pruned", PRUNED, rest)):
        graph = graph.with_sources(name, kind, parents, weights)
    return graph


def _errors(paths: Paths, r: Readings) -> Tensor:
    """What transcoders miss of all MLPs that a reading sees, (n)."""
    total = torch.zeros_like(r.own)
    for layer, error in enumerate(paths.local.errors):
        total += torch.linalg.vecdot(r.vectors, error[r.pos]) * r.sees(at_mlp(layer))
    return total


def _biases(paths: Paths, r: Readings) -> Tensor:
    """A reading's own constant, times the coefficients on its way, and what MLPs and attention write whatever they
    read, (n)."""
    total, local, norms = r.own.clone(), paths.local, paths.norms
    for layer in range(local.n_layers):
        attended = torch.linalg.vecdot(r.vectors, norms.attn_bias(layer)[r.pos])
        total += attended * r.sees(at_attention(layer))
        if layer in local.mlp_bias:
            total += torch.linalg.vecdot(r.vectors, norms.mlp_bias(layer)[r.pos]) * r.sees(at_mlp(layer))
    return total


def _reference_biases(paths: Paths, nodes: PathNodes) -> Tensor:
    """As the reference code has it: b_enc of features, without the coefficients on the way to them; else nothing."""
    total = paths.levels[0].contribution.new_zeros(len(nodes))
    features = nodes.kind == k.FEATURE
    for layer in nodes.layer[features].unique().tolist():
        which = features & (nodes.layer == layer)
        total[which] = paths.local.sets.b_enc(layer)[nodes.index[which]].to(total)
    return total
