"""The gradient of a sparse dictionary by its entries, and Adam on it: no dense gradient and no autograd graph.

Of N tokens with k features each, the gradient of a dictionary of F features has N k entries, though its dense form has
F rows: every row is a sum over the tokens its feature fired on. `SparseGradient` holds the entries sorted by feature;
`gradient_norm` and `adam_` sum each row where it is needed and forget it.

The functions here compute in place or return plain tensors; none is differentiable.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import arguments, dispatch
from .screen import Screen
from .sparse import INT32_MAX


class DictionaryParams(NamedTuple):
    """The rows of a dictionary's features, or something of the same shapes: a gradient, a moment."""

    W_enc: Tensor
    """Float[Tensor, "F d_in"]"""
    b_enc: Tensor
    """Float[Tensor, "F"]"""
    W_dec: Tensor
    """Float[Tensor, "F d_out"]"""


class SparseGradient(NamedTuple):
    """The gradient of a dictionary, with entries e of feature f:

        dW_enc[f] = sum_e dvalues[e] x[rows[e] % n]
        db_enc[f] = sum_e dvalues[e]
        dW_dec[f] = sum_e values[e] g[rows[e]]

    Sums run in order of `order`. An auxiliary loss on the same inputs stacks its own rows of g below the first n.
    """

    starts: Tensor
    """Int64[Tensor, "F+1"]: feature f's entries are order[starts[f]:starts[f + 1]]"""
    order: Tensor
    """Int32[Tensor, "nnz"]: entries by feature, see :func:`feature_order`"""
    rows: Tensor
    """Int32[Tensor, "nnz"]: the row of g an entry stands in"""
    dvalues: Tensor
    """Float[Tensor, "nnz"]: the loss's derivative by the entry's activation; 0 for an empty slot"""
    values: Tensor
    """Float[Tensor, "nnz"]: the entry's activation"""
    x: Tensor
    """Float[Tensor, "n d_in"]"""
    g: Tensor
    """Float[Tensor, "m d_out"], m a multiple of n: the loss's derivative by the reconstruction"""


def decode_residual(
    values: Tensor, indices: Tensor, W_dec: Tensor, b_dec: Tensor | None, y: Tensor, relu: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """The residual of a top-k reconstruction, with all that its squared loss needs of the decoder rows.

    Args:
        values: Float[Tensor, "n k"].
        indices: Int[Tensor, "n k"].
        W_dec: Float[Tensor, "F d"].
        b_dec: Float[Tensor, "d"] or None.
        y: Float[Tensor, "n d"], the target.
        relu: slots with values <= 0 are empty: their activation has derivative 0.

    Returns:
        residual Float[Tensor, "n d"] = b_dec + sum_j values[n, j] W_dec[indices[n, j]] - y;
        dots Float[Tensor, "n k"] = <residual[n], W_dec[indices[n, j]]>, 0 in an empty slot;
        losses Float64[Tensor, "n"] = ||residual[n]||^2.

    Raises:
        ValueError: shapes that do not fit, or a feature id outside 0..F-1.
    """
    op = "decode_residual"
    arguments.check(values.ndim == 2, op, "values must be [n, k]", values)
    arguments.check(indices.shape == values.shape, op, f"indices must be [n, k]={list(values.shape)}", indices)
    arguments.check_weights(op, "W_dec", W_dec, None, None)
    n, d = len(values), W_dec.shape[1]
    arguments.check(y.shape == (n, d), op, f"y must be [n, d]=[{n}, {d}]", y)
    values, W_dec, y = arguments.floats(values.detach(), W_dec.detach(), y.detach())
    if b_dec is not None:
        arguments.check(b_dec.shape == (d,), op, f"b_dec must be [d]=[{d}]", b_dec)
        b_dec = b_dec.detach().to(values.dtype).contiguous()
    run = dispatch.lookup(op, y.device)
    return run(values.contiguous(), arguments.int32(indices), arguments.rows(W_dec), b_dec, arguments.rows(y), relu)


def feature_order(indices: Tensor, n_features: int) -> tuple[Tensor, Tensor]:
    """Entries sorted by feature, then by position: a stable counting sort.

    Args:
        indices: Int[Tensor, "nnz"], the feature of every entry.
        n_features: F.

    Returns:
        starts Int64[Tensor, "F+1"] and order Int32[Tensor, "nnz"]: order[starts[f]:starts[f + 1]] are the positions of
        feature f.

    Raises:
        ValueError: a wrong shape, 2^31 entries or more, or (on a CPU) a feature id outside 0..F-1.
    """
    arguments.check(indices.ndim == 1, "feature_order", "indices must be [nnz]", indices)
    if not 0 < n_features <= INT32_MAX:
        raise ValueError(f"feature_order: n_features must be in 1..{INT32_MAX}, got {n_features}")
    if len(indices) > INT32_MAX:
        raise ValueError(f"feature_order: entries are counted in int32, at most {INT32_MAX}, got {len(indices)}")
    return dispatch.lookup("feature_order", indices.device)(arguments.int32(indices), n_features)


def column_moments(y: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the rows of y - center, and the sum of its squares, in float64.

    Args:
        y: Float[Tensor, "n d"].
        center: Float[Tensor, "d"].

    Returns:
        Float64[Tensor, "d"] and Float64[Tensor, ""].

    Raises:
        ValueError: shapes that do not fit.
    """
    arguments.check(y.ndim == 2, "column_moments", "y must be [n, d]", y)
    arguments.check(center.shape == y.shape[1:], "column_moments", f"center must be [d]=[{y.shape[1]}]", center)
    (y,) = arguments.floats(y.detach())
    return dispatch.lookup("column_moments", y.device)(arguments.rows(y), center.detach().double().contiguous())


def gradient_norm(
    grad: SparseGradient, W_dec: Tensor, remove_parallel: bool = False, enough: Tensor | None = None
) -> Tensor:
    """||dW_enc||^2 + ||db_enc||^2 + ||dW_dec||^2, the rows summed one at a time.

    Args:
        grad: of F features.
        W_dec: Float[Tensor, "F d_out"].
        remove_parallel: dW_dec[f] loses its component along W_dec[f] first.
        enough: Float64[Tensor, ""]: where the square of :func:`gradient_bound` is at most this, it is returned instead,
            at a tenth of the cost.

    Returns:
        Float64[Tensor, ""].

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    F = _checked("gradient_norm", grad)
    arguments.check_weights("gradient_norm", "W_dec", W_dec, F, grad.g.shape[1])
    _check_alike("gradient_norm", grad.x, W_dec=W_dec)
    return dispatch.lookup("gradient_norm", grad.x.device)(grad, W_dec.detach(), remove_parallel, enough)


def gradient_bound(grad: SparseGradient) -> Tensor:
    """An upper bound of the gradient's norm, the root of :func:`gradient_norm`, from the norms of the rows of x and g
    alone. It costs a tenth of the norm, and says as much where the norm only has to be below something.

    Returns:
        Float64[Tensor, ""].

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    _checked("gradient_bound", grad)
    return dispatch.lookup("gradient_bound", grad.x.device)(grad)


def adam_(
    grad: SparseGradient,
    params: DictionaryParams,
    exp_avg: DictionaryParams,
    exp_avg_sq: DictionaryParams,
    grad_scale: float | Tensor,
    lr: float | Tensor,
    step: int | Tensor,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    remove_parallel: bool = False,
    unit_norm: bool = False,
    lazy: bool = False,
    screen: Screen | None = None,
) -> None:
    """One step of Adam, in place, as `torch.optim.Adam` takes it (no weight decay): every weight and moment is read and
    written once, and no gradient is stored.

    Args:
        grad: the gradient of F features, not yet scaled.
        params, exp_avg, exp_avg_sq: weights and moments, float32 or float64 like `grad`, contiguous; changed.
        grad_scale: factor on the gradient; a non-finite one leaves everything as it is.
        lr: learning rate.
        step: 1 at the first step, for the bias corrections.
        betas, eps: of Adam.
        remove_parallel: the gradient of W_dec[f] loses its component along W_dec[f] first.
        unit_norm: rows of W_dec are rescaled to unit norm after the step; a zero row stays.
        lazy: features without entries keep weights and moments, instead of moving on by momentum.
        screen: shadow of W_enc that follows it; float32 on the CPU only.

    grad_scale, lr and step may be scalar tensors on the device of the weights.

    Raises:
        ValueError: shapes, dtypes or layouts that do not fit.
    """
    F, shapes = _checked("adam_", grad), (grad.x.shape[1], grad.g.shape[1])
    for owner, group in (("", params), ("exp_avg.", exp_avg), ("exp_avg_sq.", exp_avg_sq)):
        arguments.check_weights("adam_", f"{owner}W_enc", group.W_enc, F, shapes[0])
        arguments.check(group.b_enc.shape == (F,), "adam_", f"{owner}b_enc must be [F]=[{F}]", group.b_enc)
        arguments.check_weights("adam_", f"{owner}W_dec", group.W_dec, F, shapes[1])
        _check_alike("adam_", grad.x, **{owner + name: t for name, t in group._asdict().items()})
    if screen is not None:
        arguments.check(
            screen.W16.shape == params.W_enc.shape, "adam_", f"screen must shadow {[F, shapes[0]]}", screen.W16
        )
    dispatch.lookup("adam_", grad.x.device)(
        grad,
        *(DictionaryParams(*(t.detach() for t in group)) for group in (params, exp_avg, exp_avg_sq)),
        grad_scale,
        lr,
        step,
        betas=betas,
        eps=eps,
        remove_parallel=remove_parallel,
        unit_norm=unit_norm,
        lazy=lazy,
        screen=screen,
    )
    # The kernels write behind torch's back: whoever holds these weights for a backward pass has to notice.
    for t in (*params, *exp_avg, *exp_avg_sq):
        torch.autograd.graph.increment_version(t)
    if screen is not None:
        screen.mark(params.W_enc)


def dense_adam_(
    grad: Tensor,
    param: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    grad_scale: float | Tensor,
    lr: float | Tensor,
    step: int | Tensor,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> None:
    """The step of :func:`adam_` for a small weight with a dense gradient: an output bias, a skip path.

    Args:
        grad, param, exp_avg, exp_avg_sq: of one shape and dtype; the last three are changed.
        grad_scale, lr, step, betas, eps: as for :func:`adam_`.

    Raises:
        ValueError: shapes that do not fit.
    """
    for name, t in (("grad", grad), ("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)):
        arguments.check(t.shape == param.shape, "dense_adam_", f"{name} must be {list(param.shape)} like param", t)
    weights = grad, param.detach(), exp_avg, exp_avg_sq
    dispatch.lookup("dense_adam_", param.device)(*weights, grad_scale, lr, step, betas=betas, eps=eps)


def _checked(op: str, grad: SparseGradient) -> int:
    """The number of features of a gradient whose shapes and dtypes fit."""
    arguments.check(grad.starts.ndim == 1 and len(grad.starts) > 1, op, "starts must be [F + 1]", grad.starts)
    arguments.check(grad.order.ndim == 1, op, "order must be [nnz]", grad.order)
    nnz = len(grad.order)
    for name in ("rows", "dvalues", "values"):
        arguments.check(getattr(grad, name).shape == (nnz,), op, f"{name} must be [nnz]=[{nnz}]", getattr(grad, name))
    arguments.check(grad.x.ndim == 2, op, "x must be [n, d_in]", grad.x)
    n = len(grad.x)
    fits = grad.g.ndim == 2 and (len(grad.g) % n == 0 if n else len(grad.g) == 0)
    arguments.check(fits, op, f"g must be [m, d_out] with m a multiple of n={n}", grad.g)
    for name, wanted in (("starts", torch.int64), ("order", torch.int32), ("rows", torch.int32)):
        found = getattr(grad, name).dtype
        if found != wanted:
            raise ValueError(f"{op}: {name} must be {wanted}, got {found}")
    if grad.x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{op}: x must be float32 or float64, got {grad.x.dtype}")
    _check_alike(op, grad.x, dvalues=grad.dvalues, values=grad.values, g=grad.g)
    return len(grad.starts) - 1


def _check_alike(op: str, x: Tensor, **tensors: Tensor) -> None:
    """Of one dtype with x: what is changed in place cannot be converted on the way."""
    for name, t in tensors.items():
        if t.dtype != x.dtype:
            raise ValueError(f"{op}: {name} must be {x.dtype} like x, got {t.dtype}")
