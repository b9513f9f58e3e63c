"""The one sparse type: feature activations in compressed rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

INT32_MAX = 2**31 - 1


@dataclass(frozen=True, eq=False)
class SparseActivations:
    """N rows of feature activations out of F features, in CSR form. Only non-zeros are kept.

    Attributes:
        indptr: Int64[Tensor, "n+1"]: entries of row n are ``indptr[n]:indptr[n + 1]``.
        indices: Int32[Tensor, "nnz"]: feature ids, ascending within a row.
        values: Float[Tensor, "nnz"]: activations.
        n_features: F.

    The constructor checks shapes and dtypes, which costs nothing; :meth:`validate` reads the data.

    Raises:
        ValueError: a shape or dtype does not fit.
    """

    indptr: Tensor
    indices: Tensor
    values: Tensor
    n_features: int

    def __post_init__(self) -> None:
        if self.indptr.ndim != 1 or self.indptr.dtype != torch.int64 or self.indptr.shape[0] < 1:
            raise ValueError(
                f"SparseActivations: indptr must be int64 [n + 1], got {self.indptr.dtype} {list(self.indptr.shape)}"
            )
        if self.indices.ndim != 1 or self.indices.dtype != torch.int32:
            raise ValueError(
                f"SparseActivations: indices must be int32 [nnz], got {self.indices.dtype} {list(self.indices.shape)}"
            )
        if self.values.shape != self.indices.shape or not self.values.is_floating_point():
            raise ValueError(
                f"SparseActivations: values must be floating point [nnz]={list(self.indices.shape)}, "
                f"got {self.values.dtype} {list(self.values.shape)}"
            )
        if not 0 < self.n_features <= INT32_MAX:
            raise ValueError(f"SparseActivations: n_features must be in 1..{INT32_MAX}, got {self.n_features}")

    @property
    def n_rows(self) -> int:
        return self.indptr.shape[0] - 1

    @property
    def nnz(self) -> int:
        return self.indices.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(N, F), the shape of :meth:`to_dense`."""
        return self.n_rows, self.n_features

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device

    def rows(self) -> Tensor:
        """Int64[Tensor, "nnz"]: the row of each entry."""
        row = torch.arange(self.n_rows, device=self.indptr.device)
        return row.repeat_interleave(self.indptr.diff(), output_size=self.nnz)

    def to_dense(self) -> Tensor:
        """Float[Tensor, "n F"]; for small cases."""
        dense = self.values.new_zeros(self.n_rows, self.n_features)
        return dense.index_put((self.rows(), self.indices.long()), self.values)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SparseActivations:
        """The same activations on `device`, with values in `dtype`."""
        return SparseActivations(
            self.indptr.to(device=device),
            self.indices.to(device=device),
            self.values.to(device=device, dtype=dtype),
            self.n_features,
        )

    def detach(self) -> SparseActivations:
        """The same activations, cut from the autograd graph."""
        return SparseActivations(self.indptr, self.indices, self.values.detach(), self.n_features)

    def row(self, n: int) -> tuple[Tensor, Tensor]:
        """(indices, values) of row `n`; negative `n` counts from the end. Raises IndexError beyond the rows."""
        if not -self.n_rows <= n < self.n_rows:
            raise IndexError(f"row {n} of {self.n_rows} rows")
        n %= self.n_rows
        start, stop = int(self.indptr[n]), int(self.indptr[n + 1])
        return self.indices[start:stop], self.values[start:stop]

    def __len__(self) -> int:
        return self.n_rows

    def __getitem__(self, rows: slice) -> SparseActivations:
        """The rows of a slice of step 1. Raises TypeError for anything but a slice, ValueError for another step."""
        if not isinstance(rows, slice):
            raise TypeError(
                f"SparseActivations[...] takes a slice of rows, got {type(rows).__name__}; use row(n) for one"
            )
        start, stop, step = rows.indices(self.n_rows)
        if step != 1:
            raise ValueError(f"SparseActivations[...] takes a slice of step 1, got step {step}")
        indptr = self.indptr[start : max(start, stop) + 1]
        first, last = int(indptr[0]), int(indptr[-1])
        return SparseActivations(indptr - first, self.indices[first:last], self.values[first:last], self.n_features)

    def split(self, n: int) -> list[SparseActivations]:
        """Parts of n rows each, as slices would give them. Raises ValueError where n does not divide the rows."""
        if n < 1 or self.n_rows % n:
            raise ValueError(f"split: n must divide the {self.n_rows} rows, got {n}")
        if self.n_rows == 0:
            return []
        firsts = self.indptr[::n]
        sizes = firsts.diff().tolist()
        pointers = self.indptr.unfold(0, n + 1, n) - firsts[:-1, None]
        columns = zip(pointers, self.indices.split(sizes), self.values.split(sizes), strict=True)
        return [SparseActivations(*part, self.n_features) for part in columns]

    def where(self, keep: Tensor) -> SparseActivations:
        """The entries where `keep` Bool[Tensor, 'nnz'] is true; every row stays. Raises ValueError for another mask."""
        if keep.shape != self.indices.shape or keep.dtype != torch.bool:
            raise ValueError(f"where: keep must be torch.bool [nnz]=[{self.nnz}], got {keep.dtype} {list(keep.shape)}")
        counts = torch.bincount(self.rows()[keep], minlength=self.n_rows)
        indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return SparseActivations(indptr, self.indices[keep], self.values[keep], self.n_features)

    def __repr__(self) -> str:
        per_row = self.nnz / max(1, self.n_rows)
        return (
            f"SparseActivations({self.n_rows} rows x {self.n_features} features, {self.nnz} entries "
            f"({per_row:.1f} a row), {self.dtype}, {self.device})"
        )

    @classmethod
    def from_dense(cls, h: Tensor) -> SparseActivations:
        """The non-zeros (NaN included) of h: Float[Tensor, "n F"]. Differentiable in h."""
        if h.ndim != 2:
            raise ValueError(f"SparseActivations.from_dense: h must be [n, F], got {list(h.shape)}")
        keep = h != 0
        row, feature = keep.nonzero(as_tuple=True)
        return cls(_pointers(keep.sum(1)), feature.int(), h[row, feature], h.shape[1])

    @classmethod
    def from_topk(cls, values: Tensor, indices: Tensor, n_features: int) -> SparseActivations:
        """From the k slots of every row: values Float[Tensor, "n k"], indices Int[Tensor, "n k"].

        Empty slots (value 0) are dropped, NaN is kept, rows come out in ascending order of feature id.
        Differentiable in values.
        """
        if values.ndim != 2 or values.shape != indices.shape:
            raise ValueError(
                "SparseActivations.from_topk: values and indices must both be [n, k], "
                f"got {list(values.shape)} and {list(indices.shape)}"
            )
        if bool((indices[:, 1:] < indices[:, :-1]).any()):
            indices, order = indices.sort(dim=1, stable=True)
            values = values.gather(1, order)
        keep = values != 0
        return cls(_pointers(keep.sum(1)), indices[keep].int(), values[keep], n_features)

    @classmethod
    def stacked(cls, parts: list[SparseActivations], n_features: int, like: Tensor) -> SparseActivations:
        """The rows of all parts, one after the other; of no parts, no rows, in dtype and on the device of `like`."""
        if not parts:
            return cls.from_dense(like.new_zeros(0, n_features))
        counts = torch.cat([part.indptr.diff() for part in parts])
        ids, values = (torch.cat(column) for column in zip(*((p.indices, p.values) for p in parts), strict=True))
        return cls(_pointers(counts), ids, values, n_features)

    def largest(self, count: int) -> SparseActivations:
        """The `count` largest entries of all rows together; ties go to the lower (row, id), NaN counts as largest."""
        if count >= self.nnz:
            return self
        nan, found = self.values.isnan(), self.values.topk(count, sorted=False).values
        if bool(found.isnan().all()):
            above, equal = torch.zeros_like(nan), nan
        else:
            cut = torch.where(found.isnan(), math.inf, found).min()
            above, equal = nan | (self.values > cut), self.values == cut
        ties = equal.nonzero().flatten()[: count - int(above.sum())]
        return self.where(above.index_fill(0, ties, True))

    def validate(self) -> SparseActivations:
        """Read the data: pointers grow from 0 to nnz, ids lie in 0..F-1 and ascend within a row, no value is zero.

        Returns self. Raises ValueError naming the first offence.
        """
        if int(self.indptr[0]) != 0 or int(self.indptr[-1]) != self.nnz:
            raise ValueError(
                f"SparseActivations: indptr must run from 0 to nnz={self.nnz}, "
                f"got {int(self.indptr[0])} to {int(self.indptr[-1])}"
            )
        if self.n_rows and int(self.indptr.diff().min()) < 0:
            raise ValueError(f"SparseActivations: indptr decreases after row {int(self.indptr.diff().argmin())}")
        if self.nnz == 0:
            return self
        bad = ((self.indices < 0) | (self.indices >= self.n_features)).nonzero()
        if len(bad):
            raise ValueError(
                f"SparseActivations: feature id {int(self.indices[bad[0, 0]])} is not in 0..{self.n_features - 1}"
            )
        row = self.rows()
        bad = ((row[1:] == row[:-1]) & (self.indices[1:] <= self.indices[:-1])).nonzero()
        if len(bad):
            raise ValueError(f"SparseActivations: ids of row {int(row[bad[0, 0]])} do not ascend")
        bad = (self.values == 0).nonzero()
        if len(bad):
            raise ValueError(f"SparseActivations: row {int(row[bad[0, 0]])} stores a zero")
        return self


def _pointers(counts: Tensor) -> Tensor:
    """Int64[Tensor, "n+1"] row pointers from the number of entries of each row."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))
