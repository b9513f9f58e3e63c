"""How features of one layer are wired to those of another by weights alone, whatever the prompt."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pullback.lens import LayerWeights, Lens, Norm, as_lens, must_be_transcoders
from pullback.lens.weights import NO_NORM
from pullback.transcoders import LayeredDictionary

Head = tuple[int, int]
"""(layer, head)"""


def heads_of(lens: Lens, asked: Iterable[Any], what: str) -> list[Head]:
    """Heads as pairs of numbers. Raises ValueError, in the name of `what`, for those that the model does not have."""
    heads = [(int(layer), int(head)) for layer, head in asked]
    wrong = [(layer, head) for layer, head in heads if not (0 <= layer < lens.n_layers and 0 <= head < lens.n_heads)]
    if wrong:
        raise ValueError(f"{what}: no heads {wrong}; the model has {lens.n_layers} layers of {lens.n_heads}")
    return heads


class Wiring:
    """Reads and writes of a set on its model. Norms keep their weights and centring and lose their denominators, which
    depend on the input: what is left is proportional to an edge, by a positive factor of the target's position.

    Raises ValueError for transcoders of another model, or autoencoders.
    """

    def __init__(self, model: Any, sets: LayeredDictionary, *, strict: bool = True) -> None:
        self.lens: Lens = as_lens(model)
        self.sets = self.lens.fitted(sets, strict=strict)
        must_be_transcoders(self.sets, "attribution")

    def layer(self, layer: int) -> LayerWeights:
        return self.lens.layer_weights(layer).to(self.lens.compute_dtype)

    def heads_between(self, source: int, target: int) -> list[Head]:
        """Heads that read what layer `source` writes, and that layer `target` reads."""
        top = target if self.lens.parallel else target + 1
        return [(layer, head) for layer in range(source + 1, top) for head in range(self.lens.n_heads)]

    def writes(self, source: int, below: int, ids: Tensor | None = None) -> Tensor:
        """What features of a layer write to the MLP outputs of layers under `below`, in all, (n, d); ids None: all."""
        parts = [
            self.sets.decoder(source, to)[:] if ids is None else self.sets.decoder_rows(source, ids, to)
            for to in self.sets.targets(source)
            if to < below
        ]
        return sum(parts[1:], start=parts[0])

    def read_norm(self, target: int) -> Norm:
        """What lies between the stream and where the encoder of a layer reads."""
        hook_in, ln2 = self.sets.hook_in(target), self.layer(target).ln2
        if hook_in == "hook_resid_mid":
            return Norm(NO_NORM, None, None)
        return Norm(ln2.kind, None, None) if hook_in == "ln2.hook_normalized" else ln2

    def reads(self, target: int, ids: Tensor) -> Tensor:
        """Encoder rows of a layer as they read the stream, (n, d)."""
        rows = self.sets.encoder_rows(target, ids)
        return self.read_norm(target).pullback(rows, rows.new_ones(1))

    def as_read(self, target: int, x: Tensor) -> Tensor:
        """Vectors x (n, d) of the stream as the encoder of a layer gets them: the transpose of `reads`."""
        return self.read_norm(target).linear(x)

    def ov_transpose(self, head: Head, g: Tensor) -> Tensor:
        """Vectors g (n, d) that read a head's output, as they read what the head's values are made of: OV g."""
        w, h = self.layer(head[0]), head[1]
        W_V = w.W_V[h * w.W_V.shape[0] // w.W_O.shape[0]]
        return g @ w.W_O[h].T @ W_V.T

    def back_through(self, head: Head, g: Tensor) -> Tensor:
        """Vectors g (n, d) that read a head's output, as they read the stream before it."""
        return self.layer(head[0]).ln1.pullback(self.ov_transpose(head, g), g.new_ones(1))

    def through(self, head: Head, x: Tensor) -> Tensor:
        """Vectors x (n, d) of the stream as a head hands them on: the transpose of `back_through`."""
        w, h = self.layer(head[0]), head[1]
        W_V = w.W_V[h * w.W_V.shape[0] // w.W_O.shape[0]]
        return w.ln1.linear(x) @ W_V @ w.W_O[h]

    def must_follow(self, source: int, target: int) -> None:
        for layer in (source, target):
            if layer not in self.sets:
                raise ValueError(
                    f"virtual weights: no features of layer {layer}; the set has layers {self.sets.layers}"
                )
        if not source < target:
            raise ValueError(
                f"virtual weights: features of layer {source} do not reach those of layer {target}: a source must lie "
                "in a lower layer"
            )

    def ids(self, layer: int, features: Any) -> Tensor:
        """Feature ids (n), checked; None: all of the layer."""
        if layer not in self.sets:
            raise ValueError(f"virtual weights: no features of layer {layer}; the set has layers {self.sets.layers}")
        F = self.sets[layer].d_sae
        if features is None:
            return torch.arange(F, device=self.lens.device)
        given = torch.as_tensor(features, device=self.lens.device).reshape(-1)
        if len(given) and (given.dtype == torch.bool or given.is_floating_point() or given.is_complex()):
            raise ValueError(
                f"virtual weights: features must be ids, whole numbers in 0..{F - 1}, got {given.dtype} (of a mask, "
                "its nonzero()[:, 0])"
            )
        ids = given.long()
        if not len(ids) or int(ids.min()) < 0 or int(ids.max()) >= F:
            raise ValueError(f"virtual weights: features must be ids in 0..{F - 1}, got {ids.tolist()[:9]}")
        return ids
