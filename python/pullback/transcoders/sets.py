"""Transcoders of several layers of one model, under one roof."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pullback.ops import SparseActivations
from pullback.transcoders.transcoder import Transcoder


class TranscoderSet(Mapping[int, Transcoder]):
    """A dict from layer to transcoder that also speaks the `Dictionary` protocol of attribution.

    Args:
        transcoders: {layer: transcoder}; every one of the same input and output width.

    Raises:
        ValueError: the set is empty, a layer is not a non-negative integer, or widths differ.
    """

    def __init__(self, transcoders: Mapping[int, Transcoder]) -> None:
        if not transcoders:
            raise ValueError("TranscoderSet: needs at least one transcoder, got none")
        for layer, transcoder in transcoders.items():
            if not isinstance(layer, int) or isinstance(layer, bool) or layer < 0:
                raise ValueError(f"TranscoderSet: keys are layer numbers, got {layer!r}")
            if not isinstance(transcoder, Transcoder):
                raise ValueError(f"TranscoderSet: layer {layer} must be a Transcoder, got {type(transcoder).__name__}")
        self._transcoders = {layer: transcoders[layer] for layer in sorted(transcoders)}
        widths = {layer: (tc.d_in, tc.d_out) for layer, tc in self._transcoders.items()}
        if len(set(widths.values())) > 1:
            raise ValueError(
                f"TranscoderSet: all layers must agree on (d_in, d_out), got {widths}; are they from one model?"
            )

    def __getitem__(self, layer: int) -> Transcoder:
        if layer not in self._transcoders:
            raise KeyError(f"no transcoder for layer {layer}; this set has layers {self.layers}")
        return self._transcoders[layer]

    def __iter__(self) -> Iterator[int]:
        return iter(self._transcoders)

    def __len__(self) -> int:
        return len(self._transcoders)

    def __contains__(self, layer: object) -> bool:
        return layer in self._transcoders

    def __repr__(self) -> str:
        lines = [f"  {layer}: {transcoder.extra_repr()}" for layer, transcoder in self.items()]
        return "\n".join([f"TranscoderSet of {len(self)} layers", *lines])

    @property
    def layers(self) -> list[int]:
        """Layers that have a transcoder, ascending."""
        return list(self._transcoders)

    @property
    def d_model(self) -> int:
        return self[self.layers[0]].d_out

    def encode(self, l: int, x: Tensor) -> SparseActivations:
        """x Float[Tensor, '... d_in'] -> features of layer l, one row per vector"""
        return self[l].encode(x)

    def reconstruct(self, dst: int, acts: Mapping[int, SparseActivations], x: Tensor) -> Tensor:
        """Features {layer: ...} of all layers that write to dst, and dst's input x Float[Tensor, '... d_in'] ->
        Float[Tensor, '... d_out']: what stands in for dst's output, bias and skip path included."""
        return self[dst].reconstruct(acts[dst], x)

    def targets(self, l: int) -> list[int]:
        """Layers that features of layer l write to: its own."""
        return [self._own(l, l)]

    def sources(self, dst: int) -> list[int]:
        """Layers whose features write to layer dst: itself, if it has a transcoder."""
        return [dst] if dst in self else []

    def decoder(self, l: int, dst: int) -> Tensor:
        """Float[Tensor, 'F d_out'], a view of W_dec. Raises ValueError unless dst is l."""
        return self[self._own(l, dst)].W_dec.detach()

    def decoder_rows(self, l: int, ids: Tensor | Sequence[int], dst: int) -> Tensor:
        """Float[Tensor, 'n d_out']: rows of W_dec. Raises ValueError unless dst is l."""
        return self.decoder(l, dst)[_ids(ids, self[l])]

    def encoder_rows(self, l: int, ids: Tensor | Sequence[int]) -> Tensor:
        """Float[Tensor, 'n d_in']: rows of W_enc"""
        return self[l].W_enc.detach()[_ids(ids, self[l])]

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

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> TranscoderSet:
        """The set on a device or in a dtype. This set stays as it is; transcoders that already fit are shared, not
        copied."""

        def fits(transcoder: Transcoder) -> bool:
            same_device = device is None or transcoder.device == torch.device(device)
            return same_device and (dtype is None or transcoder.dtype == dtype)

        return TranscoderSet(
            {
                layer: transcoder if fits(transcoder) else copy.deepcopy(transcoder).to(device=device, dtype=dtype)
                for layer, transcoder in self.items()
            }
        )

    def save(
        self,
        path: str | os.PathLike[str],
        format: str = "pullback",
        *,
        calibrate: Mapping[int, Tensor] | None = None,
        **options: Any,
    ) -> None:
        """Write the set: a directory with `config.yaml` and one safetensors file a layer, or another tool's layout.

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

    def _own(self, l: int, dst: int) -> int:
        if l != dst:
            raise ValueError(
                f"features of layer {l} write to layer {l} only, not to layer {dst}: these are per-layer transcoders"
            )
        return l


def _ids(ids: Tensor | Sequence[int], transcoder: Transcoder) -> Tensor:
    return torch.as_tensor(ids, device=transcoder.device).long()
