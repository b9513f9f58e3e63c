"""Cross-layer transcoders: features that read one layer and write to it and to those above it (Ameisen et al. 2025,
"Circuit Tracing")."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pullback.ops import SparseActivations
from pullback.transcoders.features import FeatureLayer
from pullback.transcoders.layered import LayeredDictionary
from pullback.transcoders.lazy import Rows

DECODER_TYINGS = ("none", "per_source", "per_target")


class SourceLayer(FeatureLayer):
    """The features of one layer of a cross-layer transcoder, with the output bias and the skip path of that layer.

    Args:
        W_enc: Float[Tensor, 'F d_in']
        b_enc: Float[Tensor, 'F']
        W_dec: Float[Tensor, 'F t d_out']: what a feature writes to each of its t target layers, its own first. With
            tied decoders t is 1; see `CrossLayerTranscoder`.
        b_dec: Float[Tensor, 'd_out'], added to the reconstruction of this layer.
        W_skip: Float[Tensor, 'd_out d_in'] or None, from this layer's input to its own output.
        activation: TopK, BatchTopK, JumpReLU or ReLU.
        hook_in, hook_out, reading: as for `Transcoder`.

    Raises:
        ValueError: as `Transcoder`.
    """

    decoder_axes = ("F", "t", "d_out")

    def decoder(self, place: int) -> Rows:
        """Float[Tensor, 'F d_out']: what the features write to the target layer at that place."""
        return self.W_dec.detach()[:, place] if isinstance(self.W_dec, Tensor) else self.W_dec.target(place)


class CrossLayerTranscoder(LayeredDictionary[SourceLayer]):
    """y_dst = sum over layers l <= dst of z_l W_dec[l -> dst] + b_dec[dst] (+ x_dst W_skip[dst]^T)

    A dict from layer to `SourceLayer` that speaks the `Dictionary` protocol of attribution; called with {layer: x}, it
    gives {layer: y}. Features of layer l write to those of its layers that are not below l.

    Args:
        sources: {layer: SourceLayer}; every one of the same widths.
        decoder_tying: "none": W_dec has a matrix for every target layer. "per_source": one matrix, which serves all
            target layers of its source. "per_target": feature i of every layer l <= dst writes row i of the matrix that
            layer dst holds; all layers have as many features then.

    Raises:
        ValueError: there is no layer, widths differ, or a decoder has not as many matrices as the tying asks for.
    """

    layer_type = SourceLayer

    def __init__(self, sources: Mapping[int, SourceLayer], decoder_tying: str = "none") -> None:
        super().__init__(sources)
        if decoder_tying not in DECODER_TYINGS:
            raise ValueError(
                f"CrossLayerTranscoder: decoder_tying must be one of {', '.join(DECODER_TYINGS)}, got {decoder_tying!r}"
            )
        self.decoder_tying = decoder_tying
        for layer, source in self.items():
            wanted = len(self.targets(layer)) if decoder_tying == "none" else 1
            if source.W_dec.shape[1] != wanted:
                raise ValueError(
                    f"CrossLayerTranscoder: W_dec of layer {layer} must be [F, t, d_out] with t={wanted} "
                    f"(decoder_tying {decoder_tying!r}, layers {self.layers}), got {list(source.W_dec.shape)}"
                )
        numbers = {layer: source.d_sae for layer, source in self.items()}
        if decoder_tying == "per_target" and len(set(numbers.values())) > 1:
            raise ValueError(
                f"CrossLayerTranscoder: decoders tied per target need as many features in every layer, got {numbers}"
            )

    def __repr__(self) -> str:
        tied = "" if self.decoder_tying == "none" else f", decoders tied {self.decoder_tying}"
        first, *lines = super().__repr__().split("\n")
        return "\n".join([first + tied, *lines])

    def targets(self, l: int) -> list[int]:
        """Layers that features of layer l write to, ascending: its own and those above it."""
        self[l]
        return [layer for layer in self.layers if layer >= l]

    def sources(self, dst: int) -> list[int]:
        """Layers whose features write to layer dst, ascending: those below it and its own."""
        return [layer for layer in self.layers if layer <= dst] if dst in self else []

    def decoder(self, l: int, dst: int) -> Rows:
        """Float[Tensor, 'F d_out'], a view of the weights. Raises ValueError where dst lies below l or has no
        features."""
        targets = self.targets(l)
        if dst not in targets:
            raise ValueError(f"features of layer {l} write to layers {targets}, not to layer {dst}")
        if self.decoder_tying == "per_target":
            return self[dst].decoder(0)
        return self[l].decoder(targets.index(dst) if self.decoder_tying == "none" else 0)

    def _written_by(self, layer: int, acts: Mapping[int, SparseActivations]) -> Tensor:
        writers = self.sources(layer) if self.decoder_tying == "per_target" else [layer]
        return torch.cat([acts[l].indices for l in writers])

    def like(self, layers: Mapping[int, SourceLayer]) -> CrossLayerTranscoder:
        return CrossLayerTranscoder(layers, self.decoder_tying)
