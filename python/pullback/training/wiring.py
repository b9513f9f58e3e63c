"""Through which decoder matrices the features of a cross-layer transcoder write, and how derivatives come back.

Layers are counted by their place i among those of the transcoder. The features of layer i write t blocks, to layers
i, i + 1, ...; each layer holds one weight W_dec, whose gradient is a sum of `Part`s.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from pullback.ops import SparseActivations, decode_csr, sampled_dot
from pullback.training.loss import Part
from pullback.training.objective import along_rows
from pullback.transcoders import SourceLayer


class Blocks:
    """A block of d columns for each of t layers: Float[Tensor, "n t*d"], and a view of every block."""

    def __init__(self, matrix: Tensor, blocks: Sequence[Tensor]) -> None:
        self.matrix = matrix
        self.blocks = blocks

    @classmethod
    def of(cls, matrix: Tensor, d: int) -> Blocks:
        return cls(matrix, matrix.split(d, dim=1))

    def since(self, i: int) -> Blocks:
        """Those of layers i, i + 1, ..."""
        return Blocks(self.matrix[:, i * self.blocks[0].shape[1] :], self.blocks[i:])

    def squares(self) -> Tensor:
        """Float64[Tensor, "t n"]: the squared norms of their rows."""
        return torch.stack([block.double().square().sum(1) for block in self.blocks])


class Wiring(ABC):
    """One way to tie decoders."""

    def __init__(self, layers: Sequence[SourceLayer]) -> None:
        self.layers = list(layers)

    def decoder(self, i: int) -> Tensor:
        """The matrix or matrices that layer i holds, one row a feature."""
        return self.layers[i].W_dec.flatten(1)

    @abstractmethod
    def write(self, i: int, acts: SparseActivations) -> Tensor:
        """What features of layer i write: Float[Tensor, "n t*d"]."""

    @abstractmethod
    def pull(self, i: int, acts: SparseActivations, g: Blocks) -> Tensor:
        """The derivative by every entry, from that by what they write: Float[Tensor, "nnz"]."""

    @abstractmethod
    def parts(self, i: int, acts: SparseActivations, dvalues: Tensor, g: Blocks) -> dict[int, Part]:
        """{layer: part of the gradient by its weights} of entries of layer i."""

    @abstractmethod
    def norms(self, i: int) -> Tensor:
        """Float[Tensor, "F"]: the norm of all that a feature of layer i writes."""

    @abstractmethod
    def along(self, i: int, by_norm: Tensor) -> dict[int, Tensor]:
        """{layer: factor of the rows of its W_dec} in the gradient by them, from the derivative by the norms."""


class Untied(Wiring):
    """A matrix for every pair of layers: those of one source are one wide matrix."""

    def write(self, i: int, acts: SparseActivations) -> Tensor:
        return decode_csr(acts, self.decoder(i))

    def pull(self, i: int, acts: SparseActivations, g: Blocks) -> Tensor:
        return sampled_dot(g.matrix, self.decoder(i), acts.indptr, acts.indices)

    def parts(self, i: int, acts: SparseActivations, dvalues: Tensor, g: Blocks) -> dict[int, Part]:
        return {i: _part(acts, dvalues, g.matrix)}

    def norms(self, i: int) -> Tensor:
        return self.decoder(i).norm(dim=1)

    def along(self, i: int, by_norm: Tensor) -> dict[int, Tensor]:
        return {i: along_rows(by_norm, self.norms(i))}


class TiedPerSource(Wiring):
    """One matrix for all targets of a source: derivatives of the targets add up."""

    def write(self, i: int, acts: SparseActivations) -> Tensor:
        return decode_csr(acts, self.decoder(i)).repeat(1, self._targets(i))

    def pull(self, i: int, acts: SparseActivations, g: Blocks) -> Tensor:
        return sampled_dot(_total(g), self.decoder(i), acts.indptr, acts.indices)

    def parts(self, i: int, acts: SparseActivations, dvalues: Tensor, g: Blocks) -> dict[int, Part]:
        return {i: _part(acts, dvalues, _total(g))}

    def norms(self, i: int) -> Tensor:
        return self._targets(i) ** 0.5 * self.decoder(i).norm(dim=1)

    def along(self, i: int, by_norm: Tensor) -> dict[int, Tensor]:
        return {i: self._targets(i) * along_rows(by_norm, self.norms(i))}

    def _targets(self, i: int) -> int:
        return len(self.layers) - i


class TiedPerTarget(Wiring):
    """One matrix for all sources of a target: entries of the layers below move it, and nothing else of its layer."""

    def write(self, i: int, acts: SparseActivations) -> Tensor:
        return torch.cat([decode_csr(acts, self.decoder(m)) for m in self._targets(i)], dim=1)

    def pull(self, i: int, acts: SparseActivations, g: Blocks) -> Tensor:
        pairs = zip(self._targets(i), g.blocks, strict=True)
        dots = [sampled_dot(block, self.decoder(m), acts.indptr, acts.indices) for m, block in pairs]
        return torch.stack(dots).sum(0)

    def parts(self, i: int, acts: SparseActivations, dvalues: Tensor, g: Blocks) -> dict[int, Part]:
        nothing = torch.zeros_like(dvalues)
        pairs = zip(self._targets(i), g.blocks, strict=True)
        return {m: _part(acts, dvalues if m == i else nothing, block) for m, block in pairs}

    def norms(self, i: int) -> Tensor:
        return torch.stack([self.decoder(m).square().sum(1) for m in self._targets(i)]).sum(0).sqrt()

    def along(self, i: int, by_norm: Tensor) -> dict[int, Tensor]:
        return dict.fromkeys(self._targets(i), along_rows(by_norm, self.norms(i)))

    def _targets(self, i: int) -> range:
        return range(i, len(self.layers))


WIRINGS: dict[str, type[Wiring]] = {"none": Untied, "per_source": TiedPerSource, "per_target": TiedPerTarget}


def _part(acts: SparseActivations, dvalues: Tensor, g: Tensor) -> Part:
    return Part(acts.indices, acts.rows().int(), dvalues, acts.values, g)


def _total(g: Blocks) -> Tensor:
    return torch.stack(list(g.blocks)).sum(0)
