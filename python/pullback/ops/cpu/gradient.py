"""The compiled CPU backend of the training step: see `gradient` for what each function means."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pullback import _C

from .borrow import View, view

if TYPE_CHECKING:
    from ..gradient import DictionaryParams, SparseGradient
    from ..screen import Screen


def decode_residual(
    values: Tensor, indices: Tensor, W_dec: Tensor, b_dec: Tensor | None, y: Tensor, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    residual, dots = y.new_empty(y.shape), torch.empty_like(values)
    losses = y.new_empty(y.shape[0], dtype=torch.float64)
    bias = None if b_dec is None else view(b_dec)
    inputs = view(values), view(indices), view(W_dec), bias, view(y), relu
    _C.decode_residual(*inputs, view(residual), view(dots), view(losses))
    return residual, dots, losses


def feature_order(indices: Tensor, n_features: int) -> tuple[Tensor, Tensor]:
    starts, order = indices.new_empty(n_features + 1, dtype=torch.int64), torch.empty_like(indices)
    _C.feature_order(view(indices), view(starts), view(order))
    return starts, order


def column_moments(y: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    sums = torch.empty_like(center)
    squares = _C.column_moments(view(y), view(center), view(sums))
    return sums, _number(squares)


def gradient_norm(grad: SparseGradient, W_dec: Tensor, remove_parallel: bool, enough: Tensor | None = None) -> Tensor:
    if enough is not None and (bound := gradient_bound(grad).square()) <= enough:
        return bound
    return _number(_C.gradient_norm(_views(grad), view(W_dec), remove_parallel))


def gradient_bound(grad: SparseGradient) -> Tensor:
    return _number(_C.gradient_bound(_views(grad), len(grad.starts) - 1))


def adam_(
    grad: SparseGradient,
    params: DictionaryParams,
    exp_avg: DictionaryParams,
    exp_avg_sq: DictionaryParams,
    grad_scale: float | Tensor,
    lr: float | Tensor,
    step: int | Tensor,
    *,
    betas: tuple[float, float],
    eps: float,
    remove_parallel: bool,
    unit_norm: bool,
    lazy: bool,
    screen: Screen | None = None,
) -> None:
    shadow = None if screen is None else (view(screen.W16), view(screen.norms), view(screen.rests))
    tensors = _views(grad), _views(params), _views(exp_avg), _views(exp_avg_sq)
    numbers = float(grad_scale), float(lr), int(step), *betas, eps
    _C.adam(*tensors, *numbers, remove_parallel, unit_norm, lazy, shadow)


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, device="cpu")


def _views(tensors: tuple[Tensor, ...]) -> tuple[View, ...]:
    return tuple(view(t) for t in tensors)
