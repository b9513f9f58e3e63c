"""Rows of features that lie in a file, and those of them that are held in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from pullback.ops import SparseActivations
from pullback.transcoders.lazy.maps import Place, place_of, reopen

BLOCK_BYTES = 1 << 25
"""Memory of the features that stream through the encoder together."""
FEWEST = 64


class MappedRows:
    """Float[Tensor, 'F ...'] in a file: what a layer has in the place of a weight that it does not hold.

    Has a tensor's `shape`, `dtype` and `device`, which are those of what is read; `rows[ids]` and `rows[a:b]` read.
    `to` gives the same rows, read in another dtype or onto another device, whatever they were read in before. Pickled
    as the place in the file, which has to be there, unchanged, when it is read again.

    Args:
        stored: view of a map of the file, whatever its strides.
        dtype, device: of what is read; None for the dtype it is stored in.

    Raises:
        ValueError: `stored` lies in memory.
    """

    def __init__(
        self, stored: Tensor, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> None:
        place = place_of(stored)
        if place is None:
            raise ValueError("MappedRows: these weights lie in memory, not in a file that can be mapped")
        self._stored, self._place = stored, place
        self.dtype = dtype or stored.dtype
        self.device = torch.device(device or "cpu")

    @property
    def shape(self) -> torch.Size:
        return self._stored.shape

    @property
    def ndim(self) -> int:
        return self._stored.ndim

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self._stored.nbytes

    def __len__(self) -> int:
        return len(self._stored)

    def __repr__(self) -> str:
        return f"MappedRows({list(self.shape)}, {self.dtype}, {self.device}, {self._place.path})"

    def __getitem__(self, which: Tensor | Sequence[int] | slice) -> Tensor:
        """Rows by their ids Int[Tensor, 'n'], or of a slice of step 1, in memory.

        Raises:
            ValueError: a row that was asked for by its id holds NaN or infinity.
        """
        if isinstance(which, slice):
            return self._read(self._stored[which]).to(device=self.device, copy=True).contiguous()
        ids, where = torch.as_tensor(which, device="cpu").long().unique(return_inverse=True)
        rows = self._read(_gathered(self._stored, ids)).to(self.device)
        if not bool(rows.isfinite().all()):
            raise ValueError(
                f"{self._place.path} holds weights that are NaN or infinite; they come from a diverged run or a "
                "damaged file"
            )
        return rows[where.to(self.device)]

    def blocks(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """All rows in a bounded part of memory: (which, rows in `dtype`), each good until the next is asked for."""
        row_bytes = self._stored[0].numel() * dtype.itemsize
        height = min(len(self), max(FEWEST, BLOCK_BYTES // row_bytes // FEWEST * FEWEST))
        buffer = torch.empty(height, *self.shape[1:], dtype=dtype, device=self.device)
        for start in range(0, len(self), height):
            which = slice(start, min(start + height, len(self)))
            part = self._stored[which]
            if _transposed(part):
                part = part.T.contiguous().T  # two fast copies instead of a slow one
            # Converted once: to what is asked for, or first to what these rows are read in.
            yield which, buffer[: which.stop - start].copy_(part if dtype == self.dtype else self._read(part))

    def held(self, ids: Tensor) -> HeldRows:
        """These rows in memory, ids Int[Tensor, 'n'] in any order."""
        ids = ids.unique().long()
        ids = ids if len(ids) else ids.new_zeros(1)  # no activation has no features
        return HeldRows(ids, self[ids], len(self))

    def target(self, place: int) -> MappedRows:
        """Float[Tensor, 'F d'] of a decoder Float[Tensor, 'F t d']: what is written to the target at that place."""
        return MappedRows(self._stored[:, place], self.dtype, self.device)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> MappedRows:
        return MappedRows(self._stored, dtype or self.dtype, device or self.device)

    def _read(self, part: Tensor) -> Tensor:
        return part.to(self.dtype)

    def __deepcopy__(self, _memo: object) -> MappedRows:
        return self  # nothing of it can be changed

    def __reduce__(self) -> tuple:
        stored = self._stored
        seen = stored.dtype, tuple(stored.shape), stored.stride()
        return _again, (self._place, *seen, self.dtype, self.device)


@dataclass(frozen=True, eq=False)
class HeldRows:
    """Some rows of a matrix of F rows, in memory.

    ids: Int64[Tensor, 'n'], ascending. rows: Float[Tensor, 'n ...'].
    """

    ids: Tensor
    rows: Tensor
    F: int

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.F, *self.rows.shape[1:]))

    @property
    def ndim(self) -> int:
        return self.rows.ndim

    @property
    def dtype(self) -> torch.dtype:
        return self.rows.dtype

    @property
    def device(self) -> torch.device:
        return self.rows.device

    def __len__(self) -> int:
        return self.F

    def __getitem__(self, which: Tensor | Sequence[int] | slice) -> Tensor:
        """Raises ValueError if one of them is not held."""
        ids = range(self.F)[which] if isinstance(which, slice) else which
        return self.rows[self._places(torch.as_tensor(ids, device=self.device).long())]

    def target(self, place: int) -> HeldRows:
        """As `MappedRows.target`."""
        return HeldRows(self.ids, self.rows[:, place], self.F)

    def renumbered(self, acts: SparseActivations) -> SparseActivations:
        """Activations over the F features as activations over those that are held, in the same order."""
        places = self._places(acts.indices.long()).int()
        return SparseActivations(acts.indptr, places, acts.values, len(self.ids))

    def _places(self, ids: Tensor) -> Tensor:
        places = torch.searchsorted(self.ids, ids).clamp_(max=len(self.ids) - 1)
        if bool((self.ids[places] != ids).any()):
            raise ValueError("features were asked for whose rows are not held: those of another prompt?")
        return places


Rows: TypeAlias = Tensor | MappedRows | HeldRows


def in_memory(acts: SparseActivations, W_dec: Rows) -> tuple[SparseActivations, Tensor]:
    """What a kernel takes: activations, and the decoder rows that they number. A matrix in memory is taken whole; of
    one in a file, the rows of what is active are read."""
    if isinstance(W_dec, Tensor):
        return acts, W_dec
    held = W_dec.held(acts.indices) if isinstance(W_dec, MappedRows) else W_dec
    return held.renumbered(acts), held.rows


def _gathered(stored: Tensor, ids: Tensor) -> Tensor:
    """Rows by id, in the order in which the file holds their parts."""
    if _transposed(stored):
        return stored.T.index_select(1, ids).T.contiguous()
    return stored.index_select(0, ids)


def _transposed(stored: Tensor) -> bool:
    return stored.ndim == 2 and stored.stride(0) < stored.stride(1)


def _again(
    place: Place,
    stored_dtype: torch.dtype,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> MappedRows:
    return MappedRows(reopen(place, stored_dtype, shape, strides), dtype, device)
