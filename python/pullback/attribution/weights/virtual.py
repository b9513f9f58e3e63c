"""Virtual weights: how strongly a feature feeds another through the residual stream, or through one head, on any input
(Dunefsky et al. 2024; Ameisen et al. 2025; METHODS 1.5, 5.1)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pullback.attribution.weights.wiring import Head, Wiring, heads_of
from pullback.ops import top_pullbacks
from pullback.transcoders import LayeredDictionary

if TYPE_CHECKING:
    import pandas as pd

DIRECTIONS = ("into", "out of")


@dataclass(frozen=True, eq=False)
class VirtualWeights:
    """The k strongest connections of each of r features, the largest in absolute value first; id -1 fills up."""

    layer: int
    features: Tensor  # (r) int64
    direction: str
    weights: Tensor  # (r, k)
    layers: Tensor  # (r, k) int64: of the other feature
    ids: Tensor  # (r, k) int64: the other feature
    via: Tensor  # (r, k) int64: index into `heads`, -1 for the residual stream
    heads: list[Head]

    def __repr__(self) -> str:
        r, k = self.weights.shape
        return f"VirtualWeights(top {k} {self.direction} {r} features of layer {self.layer}, {len(self.heads)} heads)"

    def to_pandas(self) -> pd.DataFrame:
        """feature, other_layer, other, weight, via_layer, via_head (-1: the residual stream)."""
        import pandas as pd

        there = self.ids.flatten() >= 0
        via = torch.tensor([*self.heads, (-1, -1)])[self.via.flatten()[there]]
        return pd.DataFrame(
            {
                "feature": self.features.repeat_interleave(self.ids.shape[1])[there].numpy(),
                "other_layer": self.layers.flatten()[there].numpy(),
                "other": self.ids.flatten()[there].numpy(),
                "weight": self.weights.flatten()[there].numpy(),
                "via_layer": via[:, 0].numpy(),
                "via_head": via[:, 1].numpy(),
            }
        )


@torch.no_grad()
def virtual_weights(
    model: Any,
    sets: LayeredDictionary,
    layer: int,
    features: Tensor | Sequence[int] | int | None = None,
    *,
    direction: str = "into",
    k: int = 20,
    layers: Sequence[int] | None = None,
    heads: Sequence[Head] | str = (),
    strict: bool = True,
) -> VirtualWeights:
    """What feeds features, or what they feed, by weights alone: V[s, t] = <what s writes below t, how t reads it>.

    For a cross-layer transcoder that is the sum of the decoders of all layers between. Through a head, its OV stands in
    between. Products are formed a block of features at a time and the best kept: memory does not grow with F x F. A
    connection need not ever be used: see `interference`.

    Args:
        model, sets: a model and its transcoders, per-layer or cross-layer.
        layer, features: ids of the features asked about; None: all of the layer.
        direction: "into" them from lower layers, or "out of" them to higher ones.
        k: connections kept for each feature, by absolute value, over all layers and ways.
        layers: of the other features; None: all below, or above.
        heads: (layer, head) pairs to go through, besides the residual stream; "all" of them between the two layers.
        strict: False accepts transcoders of a fine-tuned sibling.

    Raises:
        ValueError: no such features, layers, heads or direction; transcoders of another model; autoencoders.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"virtual_weights: direction must be 'into' or 'out of', got {direction!r}")
    if k < 1:
        raise ValueError(f"virtual_weights: k must be at least 1, got {k}")
    wiring = Wiring(model, sets, strict=strict)
    ids = wiring.ids(layer, features)
    others = _others(wiring, layer, direction, layers)
    chosen = _heads(wiring, heads)
    best = _Best(len(ids), k)
    for other in others:
        source, target = (other, layer) if direction == "into" else (layer, other)
        reads = wiring.reads(layer, ids) if direction == "into" else None
        between = wiring.heads_between(source, target)
        for via, head in [(-1, None), *((n, head) for n, head in enumerate(chosen) if head in between)]:
            below = target if head is None else head[0]
            if reads is not None:
                v = reads if head is None else wiring.back_through(head, reads)
                W = wiring.writes(source, below)
            else:
                v = wiring.writes(source, below, ids)
                v = wiring.as_read(target, v if head is None else wiring.through(head, v))
                W = wiring.sets[target].W_enc.detach()
            values, found = top_pullbacks(v, W, min(k, len(W)), absolute=True)
            best.add(values.cpu(), found.cpu().long(), other, via)
    return VirtualWeights(layer, ids.cpu(), direction, best.values, best.layers, best.ids, best.via, chosen)


def _others(wiring: Wiring, layer: int, direction: str, layers: Sequence[int] | None) -> list[int]:
    down = direction == "into"
    possible = [other for other in wiring.sets.layers if (other < layer if down else other > layer)]
    if layers is None and not possible:
        side = "below" if down else "above"
        raise ValueError(f"virtual_weights: no features {side} layer {layer}; the set has layers {wiring.sets.layers}")
    if layers is None:
        return possible
    chosen = sorted(set(layers))
    for other in chosen:
        wiring.must_follow(*((other, layer) if down else (layer, other)))
    return chosen


def _heads(wiring: Wiring, heads: Sequence[Head] | str) -> list[Head]:
    if not isinstance(heads, str):
        return heads_of(wiring.lens, heads, "virtual_weights")
    if heads != "all":
        raise ValueError(f"virtual_weights: heads must be (layer, head) pairs or 'all', got {heads!r}")
    return list(itertools.product(range(wiring.lens.n_layers), range(wiring.lens.n_heads)))


class _Best:
    """The k largest of each row in absolute value, over blocks as they come; of equals, what came first."""

    def __init__(self, rows: int, k: int) -> None:
        self.k = k
        self.values = torch.zeros(rows, 0)
        self.layers, self.ids, self.via = (torch.zeros(rows, 0, dtype=torch.long) for _ in range(3))

    def add(self, values: Tensor, ids: Tensor, layer: int, via: int) -> None:
        values = torch.cat([self.values.to(values.dtype), values], 1)
        columns = (
            torch.cat([self.layers, torch.full_like(ids, layer)], 1),
            torch.cat([self.ids, ids], 1),
            torch.cat([self.via, torch.full_like(ids, via)], 1),
        )
        order = values.abs().argsort(dim=1, descending=True, stable=True)[:, : self.k]
        self.values = values.gather(1, order)
        self.layers, self.ids, self.via = (column.gather(1, order) for column in columns)
