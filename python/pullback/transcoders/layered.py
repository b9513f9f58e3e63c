"""What dictionaries of several layers of one model have in common, whether their features write to one layer or to
several."""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from pullback.ops import SparseActivations, decode_csr
from pullback.transcoders.features import FeatureLayer
from pullback.transcoders.lazy import Rows, in_memory

if TYPE_CHECKING:
    from typing_extensions import Self

Layer = TypeVar("Layer", bound=FeatureLayer)


class LayeredDictionary(ABC, Mapping[int, Layer], Generic[Layer]):
    """A dict from layer to features that also speaks the `Dictionary` protocol of attribution.

    Args:
        layers: {layer: features}; every one of the same input and output width.

    Raises:
        ValueError: there is none, a layer is not a non-negative integer, or widths differ.
    """

    layer_type: ClassVar[type[FeatureLayer]]

    def __init__(self, layers: Mapping[int, Layer]) -> None:
        own, kind = type(self).__name__, self.layer_type.__name__
        if not layers:
            raise ValueError(f"{own}: needs at least one {kind}, got none")
        for number, features in layers.items():
            if not isinstance(number, int) or isinstance(number, bool) or number < 0:
                raise ValueError(f"{own}: keys are layer numbers, got {number!r}")
            if not isinstance(features, self.layer_type):
                raise ValueError(f"{own}: layer {number} must be a {kind}, got {type(features).__name__}")
        self._layers = {number: layers[number] for number in sorted(layers)}
        widths = {number: (features.d_in, features.d_out) for number, features in self._layers.items()}
        if len(set(widths.values())) > 1:
            raise ValueError(f"{own}: all layers must agree on (d_in, d_out), got {widths}; are they from one model?")

    def __getitem__(self, layer: int) -> Layer:
        if layer not in self._layers:
            raise KeyError(f"no transcoder for layer {layer}; this set has layers {self.layers}")
        return self._layers[layer]

    def __iter__(self) -> Iterator[int]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __contains__(self, layer: object) -> bool:
        return layer in self._layers

    def __repr__(self) -> str:
        lines = [f"  {layer}: {features.extra_repr()}" for layer, features in self.items()]
        return "\n".join([f"{type(self).__name__} of {len(self)} layers", *lines])

    @property
    def layers(self) -> list[int]:
        """Layers that have features, ascending."""
        return list(self._layers)

    @property
    def d_model(self) -> int:
        return self[self.layers[0]].d_out

    def encode(self, l: int, x: Tensor) -> SparseActivations:
        """x Float[Tensor, '... d_in'] -> features of layer l, one row per vector"""
        return self[l].encode(x)

    @abstractmethod
    def targets(self, l: int) -> list[int]:
        """Layers that features of layer l write to, ascending; the first is l."""

    @abstractmethod
    def sources(self, dst: int) -> list[int]:
        """Layers whose features write to layer dst, ascending; the last is dst. None if dst has no features."""

    @abstractmethod
    def decoder(self, l: int, dst: int) -> Rows:
        """Float[Tensor, 'F d_out'], a view of the weights, or what stands for them where they lie in a file (kernels
        take `in_memory(acts, decoder)`). Raises ValueError unless layer l writes to dst."""

    def holding(self, acts: Mapping[int, SparseActivations]) -> Self:
        """This set with the decoder rows of these features {layer: ...} in memory, to work with them for a while.

        Layers whose decoder is in memory are shared. What is not held cannot be asked for: the set is for these
        features only.
        """
        return self.like({layer: features.holding(self._written_by(layer, acts)) for layer, features in self.items()})

    def _written_by(self, layer: int, acts: Mapping[int, SparseActivations]) -> Tensor:
        """Int[Tensor, 'n']: rows of the decoder that this layer holds which these features write."""
        return acts[layer].indices

    def decoder_rows(self, l: int, ids: Tensor | Sequence[int], dst: int) -> Tensor:
        """Float[Tensor, 'n d_out']: rows of `decoder`."""
        return self.decoder(l, dst)[_ids(ids, self[l])]

    def encoder_rows(self, l: int, ids: Tensor | Sequence[int]) -> Tensor:
        """Float[Tensor, 'n d_in']: rows of W_enc"""
        return self[l].W_enc[_ids(ids, self[l])].detach()

    def b_enc(self, l: int) -> Tensor:
        """Float[Tensor, 'F']"""
        return self[l].b_enc.detach()

    def b_dec(self, dst: int) -> Tensor:
        """Float[Tensor, 'd_out']"""
        return self[dst].b_dec.detach()

    def skip(self, l: int) -> Tensor | None:
        """Float[Tensor, 'd_out d_in'] or None: y += x @ skip.T"""
        W_skip = self[l].W_skip
        return None if W_skip is None else W_skip.detach()

    def hook_in(self, l: int) -> str:
        return self[l].hook_in

    def hook_out(self, l: int) -> str:
        return self[l].hook_out

    def decode(self, acts: Mapping[int, SparseActivations], dst: int, b_dec: Tensor | None = None) -> Tensor:
        """What the features of all source layers write to layer dst, Float[Tensor, 'n d_out'], on top of `b_dec`.

        Args:
            acts: {source layer: n rows of features}
        """
        missing = [src for src in self.sources(dst) if src not in acts]
        if missing:
            raise ValueError(f"features of layers {missing} write to layer {dst} too, and are not given")
        first, *rest = self.sources(dst)
        y = decode_csr(*in_memory(acts[first], self.decoder(first, dst)), b_dec)
        for src in rest:
            y = y + decode_csr(*in_memory(acts[src], self.decoder(src, dst)))
        return y

    def reconstruct(self, dst: int, acts: Mapping[int, SparseActivations], x: Tensor) -> Tensor:
        """Features {layer: ...} of all layers that write to dst, and dst's input x Float[Tensor, '... d_in'] ->
        Float[Tensor, '... d_out']: what stands in for dst's output, bias and skip path included."""
        y = self.decode(acts, dst, self.b_dec(dst)).view(*x.shape[:-1], self.d_model)
        W_skip = self.skip(dst)
        return y if W_skip is None else y + x.to(y) @ W_skip.to(y).T

    @torch.no_grad()
    def forward(self, inputs: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """{layer: x Float[Tensor, '... d_in']} -> {layer: reconstruction Float[Tensor, '... d_out']}.

        Raises:
            ValueError: an input is missing on which a reconstruction depends.
        """
        acts = {layer: self.encode(layer, x) for layer, x in inputs.items()}
        return {layer: self.reconstruct(layer, acts, x) for layer, x in inputs.items()}

    __call__ = forward

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The set on a device or in a dtype. This set stays as it is; layers that already fit are shared, not
        copied. Weights in a file stay there: what is read of them is what changes."""

        def fits(features: FeatureLayer) -> bool:
            same_device = device is None or features.device == torch.device(device)
            return same_device and (dtype is None or features.dtype == dtype)

        return self.like(
            {
                layer: features if fits(features) else copy.deepcopy(features).to(device=device, dtype=dtype)
                for layer, features in self.items()
            }
        )

    @abstractmethod
    def like(self, layers: Mapping[int, Layer]) -> Self:
        """A dictionary of this kind with other weights."""

    def save(
        self,
        path: str | os.PathLike[str],
        format: str = "pullback",
        *,
        calibrate: Mapping[int, Tensor] | None = None,
        **options: Any,
    ) -> None:
        """Write the set: a directory with `config.yaml` and safetensors files layer by layer, or another tool's layout.

        All or nothing: if the save is interrupted or the disk is full, a set saved there before stays as it was; so
        there must be room for both. Other files in the directory stay.

        Args:
            format: "pullback", "saelens", "sparsify" or "circuit-tracer"; see docs/FORMATS.md.
            calibrate: {layer: inputs Float[Tensor, 'n d_in']}: write thresholds calibrated on these inputs in the place
                of a top-k, which SAELens's and circuit-tracer's transcoders do not have. Refused without.
            options: of the layout: `hookpoint` (sparsify), `metadata` (saelens), `scan` (circuit-tracer).

        Raises:
            OSError: of the file system.
            ValueError: the layout cannot hold this set; the sentence says what to do.
        """
        from pullback.transcoders.formats import writing

        writing.save(self, path, format, calibrate=calibrate, **options)

    def push_to_hub(
        self,
        repo_id: str,
        format: str = "pullback",
        *,
        calibrate: Mapping[int, Tensor] | None = None,
        private: bool = False,
        revision: str | None = None,
        token: str | None = None,
        **options: Any,
    ) -> str:
        """Save in a layout of `save` and upload it to the hub repository "owner/name", made if there is none.

        Returns: the address of the commit. Raises: as `save`, and what the hub's client raises.
        """
        from pullback.transcoders.formats import writing

        return writing.push(self, repo_id, format, calibrate, private, revision, token, options)


def _ids(ids: Tensor | Sequence[int], features: FeatureLayer) -> Tensor:
    return torch.as_tensor(ids, device=features.device).long()
