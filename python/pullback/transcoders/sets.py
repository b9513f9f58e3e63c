"""Transcoders of several layers of one model, under one roof."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pullback.transcoders.layered import LayeredDictionary
from pullback.transcoders.lazy import Rows
from pullback.transcoders.transcoder import Transcoder


class TranscoderSet(LayeredDictionary[Transcoder]):
    """A dict from layer to transcoder that also speaks the `Dictionary` protocol of attribution.

    Args:
        transcoders: {layer: transcoder}; every one of the same input and output width.

    Raises:
        ValueError: the set is empty, a layer is not a non-negative integer, or widths differ.
    """

    layer_type = Transcoder

    def __init__(self, transcoders: Mapping[int, Transcoder]) -> None:
        super().__init__(transcoders)

    def targets(self, l: int) -> list[int]:
        """Layers that features of layer l write to: its own."""
        return [self._own(l, l)]

    def sources(self, dst: int) -> list[int]:
        """Layers whose features write to layer dst: itself, if it has a transcoder."""
        return [dst] if dst in self else []

    def decoder(self, l: int, dst: int) -> Rows:
        """Float[Tensor, 'F d_out'], a view of W_dec. Raises ValueError unless dst is l."""
        W_dec = self[self._own(l, dst)].W_dec
        return W_dec.detach() if isinstance(W_dec, Tensor) else W_dec

    def like(self, layers: Mapping[int, Transcoder]) -> TranscoderSet:
        return TranscoderSet(layers)

    def _own(self, l: int, dst: int) -> int:
        if l != dst:
            raise ValueError(
                f"features of layer {l} write to layer {l} only, not to layer {dst}: these are per-layer transcoders"
            )
        return l
