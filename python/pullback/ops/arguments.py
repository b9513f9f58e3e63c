"""What the public ops do with their arguments: check shapes, bring dtypes and layouts into order."""

from __future__ import annotations

import torch
from torch import Tensor

from .sparse import INT32_MAX


def encoder_arguments(op: str, x: Tensor, W_enc: Tensor, b_enc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x [n, d_in], W_enc [F, d_in] and b_enc [F], checked and in order."""
    check(x.ndim == 2, op, "x must be [n, d_in]", x)
    check_weights(op, "W_enc", W_enc, None, x.shape[1])
    F = W_enc.shape[0]
    check(F > 0, op, "W_enc must have a feature", W_enc)
    check(b_enc.shape == (F,), op, f"b_enc must be [F]=[{F}]", b_enc)
    W_enc, x, b_enc = weights_and_floats(W_enc, x, b_enc)
    return rows(x), rows(W_enc), b_enc.contiguous()


def check(fits: bool, op: str, sentence: str, got: Tensor) -> None:
    if not fits:
        raise ValueError(f"{op}: {sentence}, got {list(got.shape)}")


def check_k(op: str, k: int, F: int) -> None:
    if not 1 <= k <= F:
        raise ValueError(f"{op}: k must be in 1..F={F}, got {k}")


def check_weights(op: str, name: str, W: Tensor, F: int | None, d: int | None) -> None:
    """W must be [F, d], where known."""
    fits = W.ndim == 2 and (F is None or W.shape[0] == F) and (d is None or W.shape[1] == d)
    if not fits:
        expected = f"[{'?' if F is None else F}, {'?' if d is None else d}]"
        turned = W.ndim == 2 and (F is None or W.shape[1] == F) and (d is None or W.shape[0] == d)
        raise ValueError(
            f"{op}: {name} must be [F, d]={expected}, got {list(W.shape)}{' (transposed?)' if turned else ''}"
        )
    if W.shape[0] > INT32_MAX:
        raise ValueError(f"{op}: {name} has {W.shape[0]} rows; feature ids are int32, at most {INT32_MAX}")


def check_pattern(op: str, indptr: Tensor, indices: Tensor, n: int) -> None:
    check(indptr.shape == (n + 1,), op, f"indptr must be [n + 1]=[{n + 1}]", indptr)
    if indptr.dtype != torch.int64:
        raise ValueError(f"{op}: indptr must be int64, got {indptr.dtype}")
    check(indices.ndim == 1, op, "indices must be [nnz]", indices)


def floats(*tensors: Tensor) -> list[Tensor]:
    """All in float64 if one of them is, else all in float32."""
    for t in tensors:
        if not t.is_floating_point():
            raise ValueError(f"expected floating point tensors, got {t.dtype} {list(t.shape)}")
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    return [t.to(dtype) for t in tensors]


def weights_and_floats(W: Tensor, *others: Tensor) -> list[Tensor]:
    """As `floats`, but half precision weights on a GPU stay as they are: its kernels read them so, at half price."""
    if not (W.is_cuda and W.dtype in (torch.bfloat16, torch.float16)) or any(t.dtype == torch.float64 for t in others):
        return floats(W, *others)
    return [W, *floats(*others)]


def int32(ids: Tensor) -> Tensor:
    """Feature ids as int32; one that does not fit becomes one that no backend accepts."""
    if ids.dtype == torch.int32:
        return ids.contiguous()
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"feature ids must be integers, got {ids.dtype} {list(ids.shape)}")
    # In int64, since narrower types do not hold the bounds.
    return ids.long().clamp(-1, INT32_MAX).to(torch.int32).contiguous()


def rows(t: Tensor) -> Tensor:
    """t with contiguous last dimension; the strides of the others are free."""
    return t if t.shape[-1] <= 1 or t.stride(-1) == 1 else t.contiguous()
