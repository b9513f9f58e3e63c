"""What a dictionary puts in the place of the outputs it was trained on, in the course of one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from pullback.ops import SparseActivations
from pullback.transcoders import LayeredDictionary

StandIn = Callable[[Tensor, Tensor], Tensor]
"""(x, y) -> what takes y's place, each (..., d)"""


def stand_ins(sets: LayeredDictionary, layers: Iterable[int]) -> dict[int, StandIn]:
    """{layer: function of what it reads and would have written}: reconstructions at `layers`.

    A layer whose features write to one of them is read on the way and left as it is, unless it is one of them itself.
    The functions hold the features of the pass they are called in, layer after layer.
    """
    chosen = set(layers)
    acts: dict[int, SparseActivations] = {}

    def stand_in(layer: int) -> StandIn:
        def fn(x: Tensor, y: Tensor) -> Tensor:
            acts[layer] = sets.encode(layer, x)
            return sets.reconstruct(layer, acts, x) if layer in chosen else y

        return fn

    read = chosen.union(*(sets.sources(layer) for layer in chosen))
    return {layer: stand_in(layer) for layer in sorted(read)}
