"""Running sums over rows of products of two sets of features, kept sparse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pullback import _C

from . import arguments, dispatch
from .cpu.borrow import view
from .functional import topk_select
from .reference import attribution as reference
from .sparse import INT32_MAX, SparseActivations

_View = tuple[int, int, tuple[int, ...], tuple[int, ...]]  # what _view gives


class PairSums(NamedTuple):
    """Sums over rows for the pairs (i, j) that have met, as CSR over i with j ascending."""

    indptr: Tensor
    """Int64[Tensor, "F_a+1"]"""
    indices: Tensor
    """Int32[Tensor, "pairs"]: j"""
    products: Tensor
    """Float64[Tensor, "pairs"]: sum of a_i b_j"""
    gated: Tensor
    """Float64[Tensor, "pairs"]: sum of a_i where b_j > 0"""


class Coactivation:
    """Sums over rows (tokens) of a_i b_j and of a_i 1(b_j > 0), for features i of one set and j of another.

    What expected attributions are made of (METHODS 3.3), with V the virtual weights and E the mean over rows:

        ERA_ij   = E[1(b_j > 0) a_i] V_ij     = gated / count * V
        TWERA_ij = E[b_j a_i] / E[b_j] * V_ij = products / sums_b[j] * V

    Everything is accumulated in float64, each pair in order of row within an `add`: the same bits for any number of
    threads. Memory follows the pairs that have met (20 bytes each, up to three times that while sums are joined), not
    F_a x F_b; with `rows` it is a dense block of those features of the first set. Sums live on the CPU.

    Args:
        n_features_a, n_features_b: F_a and F_b; F_b defaults to F_a.
        rows: ids of the features i to keep, or None for all.

    Raises:
        ValueError: sizes that are no number of features, or rows that repeat or lie outside 0..F_a-1.

    Attributes:
        count: rows seen.
        sums_a: Float64[Tensor, "F_a"], sum of a_i.
        sums_b: Float64[Tensor, "F_b"], sum of b_j.
        rows: Int64[Tensor, "r"] or None.
    """

    def __init__(
        self, n_features_a: int, n_features_b: int | None = None, rows: Tensor | Sequence[int] | None = None
    ) -> None:
        n_features_b = n_features_a if n_features_b is None else n_features_b
        for F in (n_features_a, n_features_b):
            if not 0 < F <= INT32_MAX:
                raise ValueError(f"Coactivation: a number of features must be in 1..{INT32_MAX}, got {F}")
        self.count = 0
        self.sums_a = torch.zeros(n_features_a, dtype=torch.float64, device="cpu")
        self.sums_b = torch.zeros(n_features_b, dtype=torch.float64, device="cpu")
        self.rows = None if rows is None else _checked_rows(rows, n_features_a)
        shape = n_features_a, n_features_b
        self._sums: _Pairs | _Block = _Pairs(*shape) if self.rows is None else _Block(self.rows, *shape)

    def add(self, a: SparseActivations, b: SparseActivations | None = None) -> Coactivation:
        """Count the rows of a and of b, which go together; b defaults to a. Returns self.

        Raises:
            ValueError: other numbers of features, or of rows.
        """
        b = a if b is None else b
        F_a, F_b = len(self.sums_a), len(self.sums_b)
        if (a.n_features, b.n_features) != (F_a, F_b) or a.n_rows != b.n_rows:
            raise ValueError(
                f"Coactivation.add: a and b must be [n, F_a]=[n, {F_a}] and [n, F_b]=[n, {F_b}], "
                f"got {list(a.shape)} and {list(b.shape)}"
            )
        a, b = _float_pair(a, b)
        self._sums.add(a, b)  # checks the data, so that a refusal leaves the sums as they were
        self.count += a.n_rows
        self.sums_a += _feature_sums(a)
        self.sums_b += _feature_sums(b)
        return self

    def merge(self, other: Coactivation) -> Coactivation:
        """Add the sums of another part of the rows. Returns self. Raises ValueError where features or `rows` differ."""
        same_rows = (self.rows is None) == (other.rows is None)
        if self.rows is not None and other.rows is not None:
            same_rows = torch.equal(self.rows, other.rows)
        if len(self.sums_a) != len(other.sums_a) or len(self.sums_b) != len(other.sums_b) or not same_rows:
            raise ValueError(f"Coactivation.merge: {self!r} and {other!r} count different features")
        self._sums.merge(other._sums)
        self.count += other.count
        self.sums_a += other.sums_a
        self.sums_b += other.sums_b
        return self

    @property
    def mean_a(self) -> Tensor:
        """Float64[Tensor, "F_a"]: E[a_i], 0 before the first row."""
        return self.sums_a / max(1, self.count)

    @property
    def mean_b(self) -> Tensor:
        """Float64[Tensor, "F_b"]: E[b_j], 0 before the first row."""
        return self.sums_b / max(1, self.count)

    def to_csr(self) -> PairSums:
        """The sums of all pairs that have met. Raises ValueError where `rows` restricts them: use :meth:`block`."""
        if not isinstance(self._sums, _Pairs):
            raise ValueError("Coactivation.to_csr: rows are restricted, their sums are dense: use block()")
        return self._sums.total()

    def block(self) -> tuple[Tensor, Tensor]:
        """Float64[Tensor, "r F_b"] products and gated of the features in `rows`, in their order; not copied.

        Raises ValueError without `rows`: use :meth:`to_csr`.
        """
        if not isinstance(self._sums, _Block):
            raise ValueError("Coactivation.block: all features are kept, their sums are sparse: use to_csr()")
        return self._sums.products, self._sums.gated

    def top(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """The k pairs with the largest products, largest first; ties to the lower i (to the earlier of `rows`), then j.

        Returns:
            products Float64[Tensor, "k"], i Int64[Tensor, "k"], j Int64[Tensor, "k"]; fewer where fewer have met. Of a
            block all pairs count.
        """
        if isinstance(self._sums, _Pairs):
            total = self._sums.total()
            positions = _largest(total.products, k)
            i = torch.searchsorted(total.indptr, positions, right=True) - 1
            return total.products[positions], i, total.indices[positions].long()
        products = self._sums.products.flatten()
        positions = _largest(products, k)
        return products[positions], self._sums.ids[positions // len(self.sums_b)], positions % len(self.sums_b)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything counted so far, as tensors that later rows do not change."""
        state = {"count": torch.tensor(self.count), "sums_a": self.sums_a, "sums_b": self.sums_b}
        if isinstance(self._sums, _Pairs):
            state |= self._sums.total()._asdict()
        else:
            state |= {"rows": self._sums.ids, "products": self._sums.products, "gated": self._sums.gated}
        return {name: part.clone() for name, part in state.items()}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Coactivation:
        """What `state_dict` gave, to go on counting. Raises ValueError where a part is missing or does not fit."""
        parts = ("rows", "products", "gated") if "rows" in state else PairSums._fields
        missing = [name for name in ("count", "sums_a", "sums_b", *parts) if name not in state]
        if missing:
            raise ValueError(f"Coactivation: the state has no {', '.join(missing)}")
        found = cls(len(state["sums_a"]), len(state["sums_b"]), state.get("rows"))
        found.count = int(state["count"])
        found.sums_a, found.sums_b = state["sums_a"].clone(), state["sums_b"].clone()
        found._sums.load({name: state[name].clone() for name in parts})
        return found

    def __repr__(self) -> str:
        kept = "" if self.rows is None else f", {len(self.rows)} rows kept"
        return f"Coactivation({len(self.sums_a)} x {len(self.sums_b)} features{kept}, {self.count} rows seen)"


class _Pairs:
    """Sums as a stack of CSR parts, each more than twice the next: a pair is copied a logarithmic number of times."""

    def __init__(self, F_a: int, F_b: int) -> None:
        self.F_a, self.F_b = F_a, F_b
        self.parts: list[PairSums] = []

    def add(self, a: SparseActivations, b: SparseActivations) -> None:
        self._push(_pair_sums(a, b))

    def merge(self, other: object) -> None:
        assert isinstance(other, _Pairs)
        for part in list(other.parts):
            self._push(part)

    def load(self, state: dict[str, Tensor]) -> None:
        part = PairSums(**state)
        n = len(part.indices)
        if len(part.indptr) != self.F_a + 1 or len(part.products) != n or len(part.gated) != n:
            raise ValueError(f"Coactivation: the state's sums are not those of {self.F_a} x {self.F_b} features")
        self.parts = [part]

    def _push(self, part: PairSums) -> None:
        while self.parts and len(self.parts[-1].indices) <= 2 * len(part.indices):
            part = _union(self.parts.pop(), part, self.F_b)
        self.parts.append(part)

    def total(self) -> PairSums:
        if not self.parts:
            empty = torch.empty(0, dtype=torch.float64, device="cpu")
            self.parts = [
                PairSums(torch.zeros(self.F_a + 1, dtype=torch.int64, device="cpu"), empty.int(), empty, empty)
            ]
        while len(self.parts) > 1:
            last = self.parts.pop()
            self.parts.append(_union(self.parts.pop(), last, self.F_b))
        return self.parts[0]


class _Block:
    """Sums of a few features i as dense rows."""

    def __init__(self, ids: Tensor, F_a: int, F_b: int) -> None:
        self.ids = ids
        self.position = torch.full((F_a,), -1, dtype=torch.int32, device="cpu")
        self.position[ids] = torch.arange(len(ids), dtype=torch.int32, device="cpu")
        self.products = torch.zeros(len(ids), F_b, dtype=torch.float64, device="cpu")
        self.gated = torch.zeros(len(ids), F_b, dtype=torch.float64, device="cpu")

    def add(self, a: SparseActivations, b: SparseActivations) -> None:
        if dispatch.forced() == "reference":
            products, gated, _ = reference.coactivation(a, b)
            self.products += products[self.ids]
            self.gated += gated[self.ids]
            return
        kept = a.validate().where(self.position[a.indices.long()] >= 0)
        local = self.position[kept.indices.long()]  # by name: a view only borrows
        A = view(kept.indptr), view(local), view(kept.values)
        _C.coactivation_block(*A, *_views(b), view(self.products), view(self.gated))

    def load(self, state: dict[str, Tensor]) -> None:
        if state["products"].shape != self.products.shape or state["gated"].shape != self.gated.shape:
            raise ValueError(f"Coactivation: the state's sums are not {list(self.products.shape)}")
        self.products, self.gated = state["products"], state["gated"]

    def merge(self, other: object) -> None:
        assert isinstance(other, _Block)
        self.products += other.products
        self.gated += other.gated


def _pair_sums(a: SparseActivations, b: SparseActivations) -> PairSums:
    """The sums over the rows of a and b alone."""
    if dispatch.forced() == "reference":
        products, gated, met = reference.coactivation(a, b)
        indptr = torch.nn.functional.pad(met.sum(1).cumsum(0), (1, 0))
        return PairSums(indptr, met.nonzero()[:, 1].int(), products[met], gated[met])
    A, B = _views(a), _views(b)
    counts = torch.empty(a.n_features, dtype=torch.int64, device="cpu")
    _C.coactivation_counts(*A[:2], *B[:2], view(counts), b.n_features)
    sums = _room(counts)
    _C.coactivation_sums(*A, *B, *_sum_views(sums), b.n_features)
    return sums


def _union(x: PairSums, y: PairSums, F_b: int) -> PairSums:
    """The sum of two parts, in this order."""
    counts = torch.empty(len(x.indptr) - 1, dtype=torch.int64, device="cpu")
    _C.union_counts(view(x.indptr), view(x.indices), view(y.indptr), view(y.indices), view(counts), F_b)
    sums = _room(counts)
    _C.union_sums(*_sum_views(x), *_sum_views(y), *_sum_views(sums), F_b)
    return sums


def _room(counts: Tensor) -> PairSums:
    indptr = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    n = int(indptr[-1])
    floats = torch.empty(n, dtype=torch.float64, device="cpu"), torch.empty(n, dtype=torch.float64, device="cpu")
    return PairSums(indptr, torch.empty(n, dtype=torch.int32, device="cpu"), *floats)


def _views(acts: SparseActivations) -> tuple[_View, _View, _View]:
    return view(acts.indptr), view(acts.indices), view(acts.values)


def _sum_views(sums: PairSums) -> tuple[_View, _View, _View, _View]:
    return view(sums.indptr), view(sums.indices), view(sums.products), view(sums.gated)


def _float_pair(a: SparseActivations, b: SparseActivations) -> tuple[SparseActivations, SparseActivations]:
    """Both on the CPU, contiguous, and float64 if one is, else float32."""
    values = arguments.floats(a.values.detach().cpu(), b.values.detach().cpu())

    def contiguous(acts: SparseActivations, values: Tensor) -> SparseActivations:
        indptr, indices = acts.indptr.cpu().contiguous(), acts.indices.cpu().contiguous()
        return SparseActivations(indptr, indices, values.contiguous(), acts.n_features)

    return contiguous(a, values[0]), contiguous(b, values[1])


def _feature_sums(acts: SparseActivations) -> Tensor:
    return torch.bincount(acts.indices, weights=acts.values.double(), minlength=acts.n_features)


def _checked_rows(rows: Tensor | Sequence[int], F: int) -> Tensor:
    ids = torch.as_tensor(rows, device="cpu").long()
    if ids.ndim != 1 or len(ids) == 0 or len(ids.unique()) < len(ids) or int(ids.min()) < 0 or int(ids.max()) >= F:
        raise ValueError(f"Coactivation: rows must be different feature ids in 0..{F - 1}, got {ids.tolist()[:9]}")
    return ids


def _largest(values: Tensor, k: int) -> Tensor:
    """Positions of the k largest of values Float64[Tensor, "n"], largest first, ties to the lower position."""
    if k < 1:
        raise ValueError(f"Coactivation.top: k must be at least 1, got {k}")
    if len(values) == 0:
        return torch.empty(0, dtype=torch.int64, device="cpu")
    found, positions = topk_select(values[None], min(k, len(values)), relu=False)
    return positions[0].long()[found[0].argsort(descending=True, stable=True)]
