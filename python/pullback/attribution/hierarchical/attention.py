"""What attention carries for a circuit, and why it looks there (METHODS 2.6, 5.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pullback.attribution import nodes as k
from pullback.attribution.asked import Asked
from pullback.attribution.attention.endpoints import Read
from pullback.attribution.attention.places import Carried, Place
from pullback.attribution.attention.scores import QKAttribution, qk_of
from pullback.attribution.effects import inverses
from pullback.attribution.explained import explained
from pullback.attribution.graph import Graph
from pullback.attribution.local import LocalModel, local_model
from pullback.attribution.names import node_ids
from pullback.attribution.targets import BEFORE_BLOCK, vectors_at_stream
from pullback.lens import Lens, as_lens
from pullback.transcoders import LayeredDictionary

if TYPE_CHECKING:
    from pullback.attribution.hierarchical.circuit import Hierarchical


@dataclass(frozen=True, eq=False)
class Attended:
    """One entry of a head's pattern that a circuit goes through.

    Attributes:
        place: layer, head, query and key position.
        carried: what the circuit's target receives along edges of the circuit whose last head is this one, from this
            key to this query, in units of the target.
        edges: (source, target, their part of `carried`), the largest first.
        qk: the head's score there, or how far it is above another, as a sum over pairs of what query and key are made
            of.
    """

    place: Place
    carried: float
    edges: list[tuple[str, str, float]]
    qk: QKAttribution

    def to_dict(self, pairs: int = 5) -> dict[str, Any]:
        """Plain values, with the largest pairs of the score."""
        return {
            **self.place._asdict(),
            "carried": self.carried,
            "edges": [dict(zip(("source", "target", "value"), edge, strict=True)) for edge in self.edges],
            "pattern": self.qk.pattern,
            "against": self.qk.against,
            "score": self.qk.score,
            "check": self.qk.check(),
            "pairs": [dict(zip(("query", "key", "value"), pair, strict=True)) for pair in self.qk.top_pairs(pairs)],
        }


@torch.no_grad()
def attended(
    model: Any,
    sets: LayeredDictionary,
    circuit: Hierarchical,
    *,
    top: int = 5,
    edges: int = 5,
    rival: bool = False,
    target: Asked = None,
    strict: bool = True,
    attention_saes: LayeredDictionary | None = None,
) -> list[Attended]:
    """The places where attention carries most of a circuit, by size, with the parts of their scores.

    Args:
        model, sets, attention_saes: what the circuit was found with.
        top: so many places; edges: so many of each.
        rival: split the score less that of the key which the query attends to most otherwise: what is the same at both
            falls out, and what is left decides between them. Where there is no other key, the score itself.
        target: what the circuit explains, as it was asked for; needed for a difference or a direction, whose vector a
            graph does not hold, of a circuit that `circuit_of` found.

    Raises:
        ValueError: no such target, a direction in the middle of the stream, other settings than positive numbers.
    """
    if top < 1 or edges < 1:
        raise ValueError(f"attended: top and edges must be at least 1, got {top} and {edges}")
    lens = as_lens(model)
    tokens = lens.to_tokens(circuit.whole.prompt_tokens())
    local = local_model(lens, sets, tokens, strict=strict, attention_saes=attention_saes)
    carried = _carried(lens, local, circuit, target)
    if not carried.edges:
        return []
    sums, queries = carried.sums()
    best = _largest(sums.flatten(), top)
    at = zip(*(column.tolist() for column in torch.unravel_index(best, sums.shape)), strict=True)
    places = [Place(layer, head, int(queries[q]), key) for layer, head, q, key in at]
    return [
        Attended(
            place,
            value,
            [(*carried.edges[e], float(row[e])) for e in _largest(row, edges).tolist()],
            qk_of(lens, local, *place, against=_rival(local, place) if rival else None),
        )
        for place, value, row in zip(places, sums.flatten()[best].tolist(), carried.through(places), strict=True)
    ]


def _rival(local: LocalModel, place: Place) -> int | None:
    """Of the other keys that the query sees, the one that it attends to most."""
    row = local.trace.layers[place.layer].pattern[place.head, place.query_pos, : place.query_pos + 1].clone()
    row[place.key_pos] = 0
    return int(row.argmax()) if bool(row.any()) else None


def _largest(values: Tensor, n: int) -> Tensor:
    """Places of the n largest by size, (at most n), without those that are rounding of the largest."""
    size = values.abs()
    best = size.argsort(descending=True, stable=True)[:n]
    return best[size[best] > 64 * torch.finfo(size.dtype).eps * size.max()]


def _carried(lens: Lens, local: LocalModel, circuit: Hierarchical, target: Asked) -> Carried:
    """The circuit's edges. A unit that one brings to node t is worth attribution[t] / value[t] of the target."""
    graph, ids = circuit.graph, circuit.graph.node_ids()
    own = graph.of_kind(k.OWN)[graph.sources.long()]
    rows, sources = graph.rows()[~own], graph.sources[~own].long()
    worth = circuit.attribution[circuit.kept] * inverses(graph)
    edges = [(ids[s], ids[t]) for s, t in zip(sources.tolist(), rows.tolist(), strict=True)]
    asked = circuit.asked if target is None else target
    known = _direction(lens, local, circuit.whole, circuit.target, asked)
    return Carried(local, edges, worth[rows].to(local.trace.embed), known)


def _direction(lens: Lens, local: LocalModel, graph: Graph, node: int, asked: Asked) -> dict[str, Read]:
    """How the target reads, by its name, where it is a difference or a direction."""
    if int(graph.nodes.kind[node]) != k.DIRECTION:
        return {}
    name = graph.node_ids()[node]
    if asked is None:
        raise ValueError(f"attended: a graph does not hold the vector of {name}; give target=, as it was asked for")
    found = explained(lens, local, asked, position=int(graph.nodes.pos[node]))
    names = node_ids(found.nodes)
    if name not in names:
        raise ValueError(f"attended: target= is not what this graph explains as {name}")
    at = names.index(name)
    layer, site, pos = (int(getattr(found.targets, column)[at]) for column in ("layer", "site", "pos"))
    if site == BEFORE_BLOCK and layer < local.n_layers:
        raise ValueError("attended: directions are followed where an MLP or ln_final reads, not between two blocks")
    return {name: (layer, pos, vectors_at_stream(local.stack, found.targets)[at])}
