"""Inputs and the dense float64 answer that every GPU decode is held against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor


@dataclass
class Decode:
    """Arguments of one sparse decode."""

    indptr: Tensor
    indices: Tensor
    values: Tensor
    W_dec: Tensor
    b_dec: Tensor | None

    def to(self, device: str) -> Decode:
        bias = None if self.b_dec is None else self.b_dec.to(device)
        W_dec = _place_rows(self.W_dec.to(device), self.W_dec.stride(0))
        return Decode(self.indptr.to(device), self.indices.to(device), self.values.to(device), W_dec, bias)

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        return self.indptr, self.indices, self.values, self.W_dec, self.b_dec


def _place_rows(W: Tensor, stride: int) -> Tensor:
    """W with its rows `stride` elements apart."""
    F, d = W.shape
    padded = W.new_zeros(F, max(stride, d))
    padded[:, :d] = W
    return padded[:, :d]


def make_decode(
    counts: list[int], F: int, d: int, dtype: torch.dtype, *, pad: int = 0, bias: bool = True, seed: int = 0
) -> Decode:
    """Rows with `counts[n]` distinct ascending ids each; W_dec's rows lie d + pad elements apart."""
    random = torch.Generator().manual_seed(seed)
    ids = [torch.randperm(F, generator=random)[:count].sort().values for count in counts]
    values_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return Decode(
        indptr=torch.tensor([0, *counts], dtype=torch.int64).cumsum(0),
        indices=torch.cat([torch.empty(0, dtype=torch.int64), *ids]).int(),
        values=torch.randn(sum(counts), generator=random).to(values_dtype),
        W_dec=_place_rows(torch.randn(F, d, generator=random).to(dtype), d + pad),
        b_dec=torch.randn(d, generator=random).to(dtype) if bias else None,
    )


@st.composite
def decodes(draw: st.DrawFn, dtype: torch.dtype) -> Decode:
    F = draw(st.integers(1, 50))
    counts = draw(st.lists(st.integers(0, F), max_size=5))
    d = draw(st.sampled_from([1, 2, 8, 33, 64, 127, 128, 260]))
    pad, bias, seed = draw(st.sampled_from([0, 3, 8])), draw(st.booleans()), draw(st.integers(0, 2**16))
    return make_decode(counts, F, d, dtype, pad=pad, bias=bias, seed=seed)


def dense(case: Decode) -> tuple[Tensor, Tensor]:
    """The decode as a dense product in float64, and the sum of magnitudes that rounding errors scale with."""
    H = torch.zeros(case.indptr.numel() - 1, case.W_dec.shape[0], dtype=torch.float64)
    rows = torch.arange(H.shape[0]).repeat_interleave(case.indptr.diff())
    H[rows, case.indices.long()] = case.values.double()
    b = torch.zeros(case.W_dec.shape[1], dtype=torch.float64) if case.b_dec is None else case.b_dec.double()
    return H @ case.W_dec.double() + b, H.abs() @ case.W_dec.double().abs() + b.abs()


def assert_decodes(out: Tensor, case: Decode) -> None:
    """`out` is within the bound for any order of summation at the precision of the values."""
    expected, magnitude = dense(case)
    assert out.shape == expected.shape
    assert out.dtype == case.values.dtype
    terms = int(case.indptr.diff().max()) if len(expected) else 0
    bound = (terms + 2) * torch.finfo(out.dtype).eps * magnitude
    assert bool(((out.cpu().double() - expected).abs() <= bound).all())


def damaged_rows() -> list[tuple[str, Decode, list[int]]]:
    """Cases with a damaged entry or pointer, and the rows that have to come out as NaN."""
    found = []
    for name, entry, value in [("id too large", 4, 9), ("id negative", 4, -1), ("id huge", 4, 2**31 - 1)]:
        case = make_decode([3, 0, 4, 2], F=9, d=20, dtype=torch.float32)
        case.indices[entry] = value
        found.append((name, case, [2]))
    for name, place, value, rows in [
        ("pointers past the end", 4, 2**40, [3]),
        ("pointers descending", 2, 1, [1]),
        ("pointer negative", 0, -5, [0]),
    ]:
        case = make_decode([3, 0, 4, 2], F=9, d=20, dtype=torch.float32)
        case.indptr[place] = value
        found.append((name, case, rows))
    return found
