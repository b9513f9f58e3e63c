"""The ops of the training step in plain torch, at the precision of their inputs: see `gradient` for what each means."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .ids import checked

if TYPE_CHECKING:
    from ..gradient import DictionaryParams, SparseGradient
    from ..screen import Screen


def decode_residual(
    values: Tensor, indices: Tensor, W_dec: Tensor, b_dec: Tensor | None, y: Tensor, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    ids = checked("decode_residual", indices.reshape(-1), len(W_dec)).view(indices.shape)
    rows = W_dec[ids]
    residual = torch.einsum("nk,nkd->nd", values, rows) - y
    if b_dec is not None:
        residual = residual + b_dec
    dots = torch.einsum("nd,nkd->nk", residual, rows)
    if relu:
        dots = torch.where(values <= 0, 0, dots)
    return residual, dots, residual.double().square().sum(1)


def feature_order(indices: Tensor, n_features: int) -> tuple[Tensor, Tensor]:
    ids = checked("feature_order", indices, n_features)
    starts = ids.new_zeros(n_features + 1)
    starts[1:] = torch.bincount(ids, minlength=n_features).cumsum(0)
    return starts, ids.argsort(stable=True).int()


def column_moments(y: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    off = y.double() - center
    return off.sum(0), off.square().sum()


def dense_gradient(grad: SparseGradient) -> DictionaryParams:
    """The gradient as W_enc (F, d_in), b_enc (F), W_dec (F, d_out): for tests and small cases."""
    from ..gradient import DictionaryParams

    F = len(grad.starts) - 1
    feature = torch.arange(F, device=grad.order.device).repeat_interleave(grad.starts.diff())
    e = grad.order.long()
    row, dvalues, values = grad.rows[e].long(), grad.dvalues[e], grad.values[e]
    x = grad.x[row % max(1, len(grad.x))]
    return DictionaryParams(
        W_enc=grad.x.new_zeros(F, grad.x.shape[1]).index_add(0, feature, dvalues[:, None] * x),
        b_enc=grad.x.new_zeros(F).index_add(0, feature, dvalues),
        W_dec=grad.g.new_zeros(F, grad.g.shape[1]).index_add(0, feature, values[:, None] * grad.g[row]),
    )


def _perpendicular(rows: Tensor, to: Tensor) -> Tensor:
    """rows without their component along the rows of `to`."""
    square = to.square().sum(1)
    along = torch.where(square > 0, (rows * to).sum(1) / square, 0)
    return rows - along[:, None] * to


def gradient_norm(grad: SparseGradient, W_dec: Tensor, remove_parallel: bool, enough: Tensor | None = None) -> Tensor:
    dense = dense_gradient(grad)
    if remove_parallel:
        dense = dense._replace(W_dec=_perpendicular(dense.W_dec, W_dec))
    exact = torch.stack([part.double().square().sum() for part in dense]).sum()
    if enough is None:
        return exact
    bound = gradient_bound(grad).square()
    return torch.where(bound <= enough, bound, exact)


def gradient_bound(grad: SparseGradient) -> Tensor:
    absolute = grad._replace(
        dvalues=grad.dvalues.double().abs(),
        values=grad.values.double().abs(),
        x=grad.x.double().norm(dim=1, keepdim=True),
        g=grad.g.double().norm(dim=1, keepdim=True),
    )
    margin = 1.001 + grad.starts.diff().max().double() * torch.finfo(grad.x.dtype).eps
    return margin * torch.stack([part.square().sum() for part in dense_gradient(absolute)]).sum().sqrt()


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
    dense = dense_gradient(grad)
    if remove_parallel:
        dense = dense._replace(W_dec=_perpendicular(dense.W_dec, params.W_dec))
    skipped = (grad.starts.diff() == 0) & lazy
    for name, p, m, v, g in zip(params._fields, params, exp_avg, exp_avg_sq, dense, strict=True):
        before = p.clone(), m.clone(), v.clone()
        dense_adam_(g, p, m, v, grad_scale, lr, step, betas=betas, eps=eps)
        if unit_norm and name == "W_dec":
            norm = torch.where(scalar(grad_scale, p.device).isfinite(), p.norm(dim=1, keepdim=True), 1)
            p.copy_(torch.where(norm > 0, p / norm, p))
        for new, old in zip((p, m, v), before, strict=True):
            new.copy_(torch.where(skipped if p.ndim == 1 else skipped[:, None], old, new))
    if screen is not None:
        screen.refresh(params.W_enc)


def scalar(number: float | Tensor, device: torch.device) -> Tensor:
    """Float64[Tensor, ""], filled on the device: to copy it there would be to wait."""
    if isinstance(number, Tensor):
        return number.double()
    return torch.full((), number, dtype=torch.float64, device=device)


def dense_adam_(
    grad: Tensor,
    param: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    grad_scale: float | Tensor,
    lr: float | Tensor,
    step: int | Tensor,
    *,
    betas: tuple[float, float],
    eps: float,
) -> None:
    scale, t = scalar(grad_scale, grad.device), scalar(step, grad.device)
    g = grad * scale.to(grad.dtype)
    m = betas[0] * exp_avg + (1 - betas[0]) * g
    v = betas[1] * exp_avg_sq + (1 - betas[1]) * g.square()
    rate, correction = lr / (1 - betas[0] ** t), (1 - betas[1] ** t).sqrt()
    p = param - rate.to(g.dtype) * m / (v.sqrt() / correction.to(g.dtype) + eps)
    for old, new in ((param, p), (exp_avg, m), (exp_avg_sq, v)):
        old.copy_(torch.where(scale.isfinite(), new, old))
