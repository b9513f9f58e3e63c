"""The sparsity rules. Each turns pre-activations h = x W_enc^T + b_enc into features, and knows how to do so without an
N x F matrix.

`dense(h)` is the rule on a given matrix, for small cases and tests; `encode(x, W_enc, b_enc)` is the rule from the
input on, in CSR form. NaN is never dropped: a NaN pre-activation becomes a NaN feature, so that whoever reads it can
refuse it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from pullback.ops import SparseActivations, batch_topk_encode, threshold_encode, topk_encode, topk_select


@dataclass(frozen=True)
class TopK:
    """The k largest pre-activations of each row; ties go to the lower feature id.

    With `relu` (the default) only the positive ones of them count, so that a row may have fewer than k features.
    circuit-tracer's TopK keeps negative values: `relu=False`.
    """

    k: int
    relu: bool = True
    name: ClassVar[str] = "topk"

    def __post_init__(self) -> None:
        _require_count("TopK", self.k)

    def dense(self, h: Tensor) -> Tensor:
        """h Float[Tensor, 'n F'] -> features Float[Tensor, 'n F']"""
        values, indices = topk_select(h, self.k, relu=self.relu)
        return torch.zeros_like(h).scatter(1, indices.long(), values.to(h.dtype))

    def encode(self, x: Tensor, W_enc: Tensor, b_enc: Tensor) -> SparseActivations:
        """x Float[Tensor, 'n d_in'], W_enc Float[Tensor, 'F d_in'], b_enc Float[Tensor, 'F'] -> n rows of features"""
        values, indices = topk_encode(x, W_enc, b_enc, self.k, relu=self.relu)
        return SparseActivations.from_topk(values, indices, W_enc.shape[0])


@dataclass(frozen=True)
class BatchTopK:
    """The k * n largest positive pre-activations of the n rows together; ties go to the lower (row, id) (BatchTopK,
    arXiv 2412.06410).

    With a `threshold` (calibrated after training) rows no longer depend on each other: h * (h > threshold).
    """

    k: int
    threshold: float | None = None
    name: ClassVar[str] = "batch_topk"

    def __post_init__(self) -> None:
        _require_count("BatchTopK", self.k)
        if self.threshold is None:
            return
        if not math.isfinite(self.threshold):
            raise ValueError(f"BatchTopK: threshold must be a finite number or None, got {self.threshold}")
        object.__setattr__(self, "threshold", float(self.threshold))  # files hold no tensors or numpy scalars

    def dense(self, h: Tensor) -> Tensor:
        """h Float[Tensor, 'n F'] -> features Float[Tensor, 'n F']"""
        if self.threshold is not None:
            return torch.where(h <= self.threshold, 0, h)
        positive = torch.where(h <= 0, 0, h)
        return SparseActivations.from_dense(positive).largest(self.k * len(h)).to_dense()

    def encode(self, x: Tensor, W_enc: Tensor, b_enc: Tensor) -> SparseActivations:
        """x Float[Tensor, 'n d_in'], W_enc Float[Tensor, 'F d_in'], b_enc Float[Tensor, 'F'] -> n rows of features"""
        if self.threshold is not None:
            return threshold_encode(x, W_enc, b_enc, self.threshold)
        return batch_topk_encode(x, W_enc, b_enc, self.k)


@dataclass(frozen=True, eq=False)
class JumpReLU:
    """h * (h > theta), theta a number or one threshold per feature, Float[Tensor, 'F']."""

    theta: Tensor | float
    name: ClassVar[str] = "jumprelu"

    def __post_init__(self) -> None:
        theta = self.theta if isinstance(self.theta, Tensor) else torch.as_tensor(self.theta, device="cpu")
        if theta.ndim > 1 or not bool(theta.isfinite().all()):
            raise ValueError(
                f"JumpReLU: theta must be one finite number or a vector [F] of them, got shape {list(theta.shape)}"
            )

    def dense(self, h: Tensor) -> Tensor:
        """h Float[Tensor, 'n F'] -> features Float[Tensor, 'n F']"""
        return torch.where(h <= self.theta, 0, h)

    def encode(self, x: Tensor, W_enc: Tensor, b_enc: Tensor) -> SparseActivations:
        """x Float[Tensor, 'n d_in'], W_enc Float[Tensor, 'F d_in'], b_enc Float[Tensor, 'F'] -> n rows of features"""
        return threshold_encode(x, W_enc, b_enc, self.theta)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, JumpReLU):
            return NotImplemented
        mine, theirs = torch.as_tensor(self.theta), torch.as_tensor(other.theta)
        return mine.shape == theirs.shape and bool((mine == theirs).all())

    __hash__ = object.__hash__


@dataclass(frozen=True)
class ReLU:
    """max(h, 0)"""

    name: ClassVar[str] = "relu"

    def dense(self, h: Tensor) -> Tensor:
        """h Float[Tensor, 'n F'] -> features Float[Tensor, 'n F']"""
        return torch.where(h <= 0, 0, h)

    def encode(self, x: Tensor, W_enc: Tensor, b_enc: Tensor) -> SparseActivations:
        """x Float[Tensor, 'n d_in'], W_enc Float[Tensor, 'F d_in'], b_enc Float[Tensor, 'F'] -> n rows of features"""
        return threshold_encode(x, W_enc, b_enc)


Activation: TypeAlias = TopK | BatchTopK | JumpReLU | ReLU


def _require_count(name: str, k: int) -> None:
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise ValueError(f"{name}: k must be an integer of at least 1, got {k!r}")
