"""Inputs that several ops share, and how their outputs are compared."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .registry import Case

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SAMPLE = 64  # rows (or features, or entries) that are compared with float64

# The dictionaries of the tables: rows, width, features, active features a token.
SMALL = {"N": 2048, "d": 512, "F": 8192, "k": 32}
WIDE = {"N": 1024, "d": 768, "F": 24576, "k": 32}
TINY = {"N": 24, "d": 16, "F": 256, "k": 4}
GPT2 = {"N": 8192, "d": 768, "F": 24576, "k": 32}
GEMMA = {"N": 8192, "d": 2304, "F": 131072, "k": 64}


def dtype_of(case: Case) -> torch.dtype:
    return DTYPES[case.dtype]


def normal(case: Case, device: torch.device, g: torch.Generator, *shape: int) -> Tensor:
    """Gaussian numbers in the dtype of the case. Never zeros: a GPU runs faster on those."""
    return torch.randn(*shape, device=device, generator=g).to(dtype_of(case))


def distinct_ids(rows: int, k: int, F: int, device: torch.device, g: torch.Generator) -> Tensor:
    """Int64[Tensor, "rows k"]: k different ids below F in every row, ascending."""
    # One from each of k equal strips: distinct by construction, and no rows x F matrix.
    edges = torch.arange(k + 1, device=device) * F // k
    width = (edges[1:] - edges[:-1]).expand(rows, k)
    return edges[:-1] + (torch.rand(rows, k, device=device, generator=g) * width).long().clamp(max=width - 1)


def sample(n: int, device: torch.device) -> Tensor:
    """At most SAMPLE of n places, first and last among them."""
    return torch.linspace(0, n - 1, min(n, SAMPLE), device=device).round().long()


@dataclass(frozen=True)
class Sampled:
    """Rows of an output in float64, and the error each entry may have."""

    places: Tensor
    expected: Tensor
    allowed: Tensor

    def error(self, got: Tensor) -> float:
        """The largest error, in units of what is allowed; infinite where got is not finite."""
        if got.shape != self.expected.shape:
            raise ValueError(f"output is {list(got.shape)}, expected {list(self.expected.shape)}")
        excess = (got.double() - self.expected).abs() / self.allowed.clamp(min=1e-300)
        return float(excess.nan_to_num(nan=torch.inf).max()) if excess.numel() else 0.0


def rounding(
    terms: int, magnitude: Tensor, result: Tensor, dtype: torch.dtype, *, terms_in_dtype: bool = False
) -> Tensor:
    """What a sum of `terms` products in float32 may be off, where the sum of their absolute values is `magnitude`, plus
    one rounding of the result to `dtype`. With `terms_in_dtype` factors may be scaled, and sums kept, in `dtype`, as
    implementations for 16-bit inputs are free to do."""
    sums = (terms + 2) * torch.finfo(torch.float32).eps * magnitude
    return sums + torch.finfo(dtype).eps * (magnitude if terms_in_dtype else result.abs())
