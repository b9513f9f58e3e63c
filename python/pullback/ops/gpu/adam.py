"""The step of Adam that a GPU takes on small weights with a dense gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference.gradient import dense_adam_ as plain_dense_adam_
from ..reference.gradient import scalar


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
    """By torch's fused Adam: a fraction of the launches, which are all that it costs on a GPU."""
    if isinstance(lr, Tensor):  # whose value the fused step would wait for
        return plain_dense_adam_(grad, param, exp_avg, exp_avg_sq, grad_scale, lr, step, betas=betas, eps=eps)
    scale, t = (scalar(number, grad.device) for number in (grad_scale, step))
    torch.ops.aten._fused_adam_(
        *([tensor] for tensor in (param, grad * scale.to(grad.dtype), exp_avg, exp_avg_sq)),
        [],
        [t.float()],
        lr=float(lr),
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=0.0,
        eps=eps,
        amsgrad=False,
        maximize=False,
        found_inf=(scale * 0).ne(0).float(),  # NaN * 0 and inf * 0 are NaN
    )
    return None
