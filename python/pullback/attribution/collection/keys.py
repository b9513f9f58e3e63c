"""What makes nodes of two prompts the same node: kind, layer, id, and perhaps the place in the prompt."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from pullback.attribution.graph import LABELLED, Graph
from pullback.attribution.nodes import DIRECTION, FEATURES, IN_ORDER, KINDS, LOGIT, OWN

Align = Literal["fold", "end"]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# One integer for a node: sort, layer + 1, place, id + 1, from the highest bit down. Sorts stand in the order of nodes;
# an own leaf's is that of own leaves of its target's kind, and all else is its target's.
_LEAVES = IN_ORDER[: IN_ORDER.index(OWN)]
_SORTS = [(kind, kind) for kind in _LEAVES]
_SORTS += [(OWN, target) for target in (*FEATURES, LOGIT, DIRECTION)] + [(kind, kind) for kind in (LOGIT, DIRECTION)]
_LAYERS, _PLACES, _IDS = 9, 17, 32
_SORT_OF = np.zeros((len(KINDS), len(KINDS)), np.int64)
for _sort, _pair in enumerate(_SORTS):
    _SORT_OF[_pair] = _sort
_LAST = (1 << _PLACES) - 1
_MODULUS = 1 << _IDS


class NodeKeys(NamedTuple):
    """Columns of (n) nodes; `place` counts up to the last position of a prompt, which is 0; folded, all are 0. `target`
    is the kind of an own leaf's target, and of other nodes their own; layer, place and id of an own leaf are the
    target's."""

    kind: Ints
    target: Ints
    layer: Ints
    place: Ints
    id: Ints

    def packed(self) -> Ints:
        """Raises ValueError for what does not fit: 510 layers, 131072 positions, ids below 2^32 - 1."""
        layer, place, ids = self.layer + 1, self.place + _LAST, self.id + 1
        sort = _SORT_OF[self.kind, self.target]
        for name, column, bits in (("layer", layer, _LAYERS), ("position", place, _PLACES), ("id", ids, _IDS)):
            if len(column) and (int(column.min()) < 0 or int(column.max()) >= 1 << bits):
                raise ValueError(f"collection: a {name} of this graph is too large to compare")
        return (((sort << _LAYERS | layer) << _PLACES | place) << _IDS) | ids

    @staticmethod
    def unpacked(keys: Ints) -> NodeKeys:
        head = keys >> _IDS
        rest = head >> _PLACES
        pairs = np.array(_SORTS)[rest >> _LAYERS]
        return NodeKeys(
            pairs[:, 0],
            pairs[:, 1],
            (rest & ((1 << _LAYERS) - 1)) - 1,
            (head & _LAST) - _LAST,
            (keys & (_MODULUS - 1)) - 1,
        )

    def of_targets(self) -> NodeKeys:
        """Of own leaves: the nodes that they belong to."""
        return self._replace(kind=self.target)


def must_align(align: str) -> None:
    if align not in ("fold", "end"):
        raise ValueError(
            f"collection: align must be 'fold' (positions summed) or 'end' (counted from the last), got {align!r}"
        )


def node_keys(graph: Graph, align: Align) -> Ints:
    """The key of every node, (n_nodes). Folded, nodes that differ in their position only share one. Directions, whose
    number counts within their own graph, are the same where their labels are."""
    n = graph.nodes
    kind, feature = _int64(n.kind), _int64(n.feature)
    feature[kind == DIRECTION] = [_number_of(label) for label in direction_names(graph)]
    target = np.where(kind == OWN, feature, 0)
    ids = np.where(kind == OWN, feature[target], feature)
    place = np.zeros_like(kind) if align == "fold" else _int64(n.pos) - len(graph.meta["tokens"]) + 1
    return NodeKeys(kind, np.where(kind == OWN, kind[target], kind), _int64(n.layer), place, ids).packed()


def direction_names(graph: Graph) -> list[str]:
    """Of the directions of a graph, in order: their labels, and of one label again, which time it is."""
    seen: Counter[str] = Counter()
    names = []
    for label in graph.meta.get(LABELLED[DIRECTION], [""] * int(graph.of_kind(DIRECTION).sum())):
        seen[label] += 1
        names.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return names


def _number_of(name: str) -> int:
    return crc32(name.encode()) % (_MODULUS - 1)


def feature_influence(graph: Graph) -> tuple[Ints, Floats]:
    """Folded keys of the features of a graph, ascending, and their influence on its logits, summed over positions."""
    which = graph.of_kind(*FEATURES).numpy()
    keys, inverse = np.unique(node_keys(graph, "fold")[which], return_inverse=True)
    influence = graph.influence().double().numpy()[which]
    return keys, np.bincount(inverse, influence, minlength=len(keys)).astype(np.float64)


def _int64(column: Any) -> Ints:
    return column.numpy().astype(np.int64)
