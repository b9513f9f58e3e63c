"""What attribution asks of a dictionary, whether its features write to one layer or to several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from pullback.ops import SparseActivations
from pullback.transcoders.lazy import Rows


@runtime_checkable
class Dictionary(Protocol):
    """Features that read the MLP input of layer `l` and write to the MLP outputs of `targets(l)`."""

    @property
    def layers(self) -> list[int]:
        """Layers that have features, ascending."""
        ...

    @property
    def d_model(self) -> int: ...

    def encode(self, l: int, x: Tensor) -> SparseActivations:
        """x Float[Tensor, '... d'] -> features of layer l"""
        ...

    def reconstruct(self, dst: int, acts: Mapping[int, SparseActivations], x: Tensor) -> Tensor:
        """Features {l: ...} of `sources(dst)`, and x Float[Tensor, '... d'] at dst -> Float[Tensor, '... d']: what
        stands in for dst's output, bias and skip path included."""
        ...

    def targets(self, l: int) -> list[int]:
        """Layers whose MLP output the features of layer l write to."""
        ...

    def sources(self, dst: int) -> list[int]:
        """Layers whose features write to the MLP output of layer dst."""
        ...

    def decoder(self, l: int, dst: int) -> Rows:
        """Float[Tensor, 'F d']: decoder from layer l to layer dst; kernels take `in_memory(acts, decoder)`."""
        ...

    def holding(self, acts: Mapping[int, SparseActivations]) -> Dictionary:
        """The dictionary with the decoder rows of these features in memory, for as long as one works with them."""
        ...

    def decoder_rows(self, l: int, ids: Tensor | Sequence[int], dst: int) -> Tensor:
        """Float[Tensor, 'n d']: the rows of that decoder for the given features."""
        ...

    def encoder_rows(self, l: int, ids: Tensor | Sequence[int]) -> Tensor:
        """Float[Tensor, 'n d']: encoder rows of the given features."""
        ...

    def b_enc(self, l: int) -> Tensor:
        """Float[Tensor, 'F']"""
        ...

    def b_dec(self, dst: int) -> Tensor:
        """Float[Tensor, 'd']: bias added to the reconstruction of layer dst."""
        ...

    def skip(self, l: int) -> Tensor | None:
        """Float[Tensor, 'd d'] or None: y += x @ skip.T"""
        ...

    def hook_in(self, l: int) -> str: ...

    def hook_out(self, l: int) -> str: ...
