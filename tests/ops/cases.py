"""Cases the op tests share: adversarial rows, random sparse patterns, and a tolerance that follows the arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from pullback import _C
from pullback.ops import SparseActivations
from pullback.ops.cpu import encoders

FLOATS = [torch.float32, torch.float64]

PRODUCTS = ["float32", "bfloat16", "tiles"]


def multiply_in(product: str, patch: pytest.MonkeyPatch) -> None:
    """Make one of PRODUCTS that which candidates come from. Any CPU multiplies bfloat16, if slowly; not so tiles."""
    if product == "tiles" and not _C.has_tiles():
        pytest.skip("this CPU, or the chosen instruction set, has no tiles")
    patch.setattr(encoders, "multiplies_bf16", lambda: product != "float32")
    patch.setattr(encoders, "makes_tiles", lambda: product == "tiles" and _C.has_tiles())
    patch.setattr(encoders, "FEWEST_TO_ROUND", dict.fromkeys(encoders.FEWEST_TO_ROUND, 0))


ROWS = {
    "normal": lambda n, F, g: torch.randn(n, F, generator=g),
    "ties": lambda n, F, g: torch.randint(-3, 4, (n, F), generator=g).double(),
    "constant": lambda n, F, g: torch.full((n, F), 1.5),
    "negative": lambda n, F, g: -torch.rand(n, F, generator=g) - 0.1,
    "ascending": lambda n, F, g: torch.arange(n * F).view(n, F).double(),
    "descending": lambda n, F, g: -torch.arange(n * F).view(n, F).double(),
    "zeros of both signs": lambda n, F, g: torch.where(torch.rand(n, F, generator=g) < 0.5, 0.0, -0.0),
    "denormal": lambda n, F, g: torch.randint(-4, 5, (n, F), generator=g) * 2.0**-149,
    "few positive": lambda n, F, g: torch.where(torch.rand(n, F, generator=g) < 3 / F, 1.0, -1.0),
    "nan": lambda n, F, g: _sprinkle(torch.randn(n, F, generator=g), math.nan, g),
    "negative nan": lambda n, F, g: _sprinkle(torch.randn(n, F, generator=g), -math.nan, g),
    "inf": lambda n, F, g: _sprinkle(_sprinkle(torch.randn(n, F, generator=g), math.inf, g), -math.inf, g),
    "everything": lambda n, F, g: _sprinkle(_sprinkle(torch.randn(n, F, generator=g), math.nan, g), math.inf, g),
}


def _sprinkle(h: Tensor, value: float, generator: torch.Generator) -> Tensor:
    return h.masked_fill(torch.rand(h.shape, generator=generator) < 0.05, value)


def rows(kind: str, n: int, F: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Float[Tensor, "n F"] of one of the kinds of ROWS."""
    return ROWS[kind](n, F, torch.Generator().manual_seed(seed)).to(dtype)


def pattern(n: int, F: int, most: int, dtype: torch.dtype, seed: int) -> SparseActivations:
    """n rows of 0 to `most` entries each, with values of both signs."""
    g = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, min(most, F) + 1, (n,), generator=g)
    ids = [torch.randperm(F, generator=g)[:c].sort().values for c in counts.tolist()]
    indices = torch.cat(ids).int() if ids else torch.empty(0, dtype=torch.int32)
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    return SparseActivations(indptr, indices, torch.randn(len(indices), generator=g).to(dtype), F)


shapes = st.fixed_dictionaries(
    {
        "n": st.integers(0, 7),
        "F": st.sampled_from([1, 2, 5, 63, 64, 65, 200]),
        "d": st.sampled_from([0, 1, 3, 15, 16, 17, 64, 130]),
        "most": st.integers(0, 9),
        "seed": st.integers(0, 2**16),
    }
)


def assert_sums(got: Tensor, expected: Tensor, magnitude: Tensor, terms: int) -> None:
    """got is a sum of `terms` products in its own precision: within terms + 2 roundings of `magnitude` of float64."""
    assert got.shape == expected.shape
    allowed = (terms + 2) * torch.finfo(got.dtype).eps * magnitude.double()
    error = (got.double() - expected.double()).abs()
    assert bool((error <= allowed).all()), f"off by {float((error - allowed).max())} beyond rounding"
