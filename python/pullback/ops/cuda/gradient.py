"""CUDA: the training step without dense gradients. See `gradient` for what each function means.

Nothing here waits for the device: the functions can be captured in a CUDA graph. float64 runs on the reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pullback import _cuda

from .. import reference
from .launch import View, optional_view, queue, view

if TYPE_CHECKING:
    from ..gradient import DictionaryParams, SparseGradient
    from ..screen import Screen


def decode_residual(
    values: Tensor, indices: Tensor, W_dec: Tensor, b_dec: Tensor | None, y: Tensor, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums are float32; W_dec may be bfloat16 or float16. A row with an id out of range becomes NaN."""
    if W_dec.dtype == torch.float64:
        return reference.decode_residual(values, indices, W_dec, b_dec, y, relu)
    with queue("decode_residual", values, indices, W_dec, b_dec, y) as place:
        values, y = values.float().contiguous(), y.float()
        bias = None if b_dec is None else b_dec.float().contiguous()
        residual, dots = y.new_empty(y.shape), torch.empty_like(values)
        losses = y.new_empty(y.shape[0], dtype=torch.float64)
        inputs = view(values), view(indices), view(W_dec), optional_view(bias), view(y)
        _cuda.decode_residual(*inputs, view(residual), view(dots), view(losses), relu, *place)
    return residual, dots, losses


def feature_order(indices: Tensor, n_features: int) -> tuple[Tensor, Tensor]:
    """Entries with an id out of range come last in `order`, behind starts[F]: no feature has them."""
    if len(indices) >= 2**31:
        raise ValueError(f"feature_order (cuda): entries are counted in int32, got {len(indices)}; use fewer rows")
    starts = indices.new_empty(n_features + 1, dtype=torch.int64)
    order = torch.empty_like(indices)
    scratch = indices.new_empty(_cuda.feature_order_scratch(len(indices)))
    with queue("feature_order", indices) as place:
        _cuda.feature_order(view(indices), view(starts), view(order), view(scratch), *place)
    return starts, order


def gradient_norm(grad: SparseGradient, W_dec: Tensor, remove_parallel: bool, enough: Tensor | None = None) -> Tensor:
    if grad.dvalues.dtype == torch.float64:
        return reference.gradient_norm(grad, W_dec, remove_parallel, enough)
    squares = grad.x.new_empty(len(grad.starts) - 1, dtype=torch.float64)
    norm = grad.x.new_empty((), dtype=torch.float64)
    row_norms = grad.x.new_empty(0 if enough is None else len(grad.x) + len(grad.g), dtype=torch.float32)
    with queue("gradient_norm", *grad, W_dec, enough) as place:
        lent, _kept = _lend(grad)
        optional = view(W_dec) if remove_parallel else None, optional_view(enough)
        _cuda.gradient_norm(lent, *optional, view(row_norms), view(squares), view(norm), *place)
    return norm


def gradient_bound(grad: SparseGradient) -> Tensor:
    enough = torch.full((), torch.inf, dtype=torch.float64, device=grad.g.device)
    return gradient_norm(grad, grad.g, False, enough).sqrt()


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
    """Weights may be bfloat16, with float32 moments. Numbers given as tensors are read on the device."""
    if screen is not None:
        raise ValueError("adam_ (cuda): a Screen belongs to weights on the CPU; leave screen=None on a GPU")
    if params.W_enc.dtype == torch.float64:
        reference.adam_(
            grad,
            params,
            exp_avg,
            exp_avg_sq,
            grad_scale,
            lr,
            step,
            betas=betas,
            eps=eps,
            remove_parallel=remove_parallel,
            unit_norm=unit_norm,
            lazy=lazy,
        )
        return
    with queue("adam_", *grad, *params, *exp_avg, *exp_avg_sq) as (device, stream):
        lent, _kept = _lend(grad)
        scale, rate, t = (_on_device(number, grad.x.device) for number in (grad_scale, lr, step))
        constants = grad.x.new_empty(4, dtype=torch.float32)
        _cuda.adam(
            lent,
            _views(params),
            _views(exp_avg),
            _views(exp_avg_sq),
            view(scale),
            view(rate),
            view(t),
            view(constants),
            betas[0],
            betas[1],
            eps,
            remove_parallel,
            unit_norm,
            lazy,
            device,
            stream,
        )


def _on_device(number: float | Tensor, device: torch.device) -> Tensor:
    """A scalar as float64 on the device; a Python number is filled in by a kernel, not copied."""
    if isinstance(number, Tensor):
        if number.device != device or number.ndim != 0:
            raise ValueError(
                f"adam_ (cuda): scalars must be 0-d on {device}, got {list(number.shape)} on {number.device}"
            )
        return number.double()
    return torch.full((), float(number), dtype=torch.float64, device=device)


def _lend(grad: SparseGradient) -> tuple[tuple[View, ...], tuple[Tensor, ...]]:
    """The views that the kernels take, scratch included, and the tensors behind them."""
    # Half the bytes to gather where both are bfloat16; a mixed pair meets in float32.
    dtype = torch.bfloat16 if grad.x.dtype == grad.g.dtype == torch.bfloat16 else torch.float32
    chunks = _cuda.gradient_chunks(len(grad.order))
    kept = (
        grad.starts,
        grad.order,
        grad.rows,
        grad.dvalues.float(),
        grad.values.float(),
        grad.x.to(dtype),
        grad.g.to(dtype),
        grad.order.new_empty(chunks),
        grad.x.new_empty(chunks, grad.x.shape[1] + grad.g.shape[1] + 1, dtype=torch.float32),
    )
    return _views(kept), kept


def _views(tensors: tuple[Tensor, ...]) -> tuple[View, ...]:
    return tuple(view(t) for t in tensors)
