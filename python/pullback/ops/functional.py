"""The public ops: check shapes, bring dtypes and layouts into order, and call `torch.ops.pullback`.

bfloat16 and float16 inputs are computed, and returned, in float32; float64 anywhere makes everything float64. On a GPU
half precision weights are read as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _encoder, _registry
from .screen import Screen
from .sparse import INT32_MAX, SparseActivations

_ops = torch.ops.pullback


def topk_select(h: Tensor, k: int, relu: bool = True) -> tuple[Tensor, Tensor]:
    """The k largest entries of every row, ties to the lower id. Differentiable in h (a scatter).

    Args:
        h: Float[Tensor, "n F"]. NaN counts as larger than everything, so that it surfaces.
        k: 1..F.
        relu: clamp the values at 0. A slot clamped to 0 is empty: its gradient is 0.

    Returns:
        values Float[Tensor, "n k"], indices Int32[Tensor, "n k"] ascending within a row.

    Raises:
        ValueError: a wrong shape or k.
    """
    _check(h.ndim == 2, "topk_select", "h must be [n, F]", h)
    _check_k("topk_select", k, h.shape[1])
    (h,) = _floats(h)
    return _ops.topk_select(_rows(h), k, relu)


def topk_encode(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, relu: bool = True, screen: Screen | None = None
) -> tuple[Tensor, Tensor]:
    """`topk_select(x @ W_enc.T + b_enc, k, relu)` without the N x F matrix.

    The pre-activations compared and returned are exact: accumulated in float64 and rounded once, whatever the GEMM, the
    chunks, the threads, the instruction set or the device (float64 on a GPU, and k > 512 there: what the GEMM gives).
    On a GPU, bfloat16 and float16 weights stay as they are, and x is rounded to their dtype.
    Differentiable in x, W_enc and b_enc, over the chosen entries only.

    Args:
        x: Float[Tensor, "n d_in"].
        W_enc: Float[Tensor, "F d_in"].
        b_enc: Float[Tensor, "F"].
        k: 1..F.
        relu: as in :func:`topk_select`.
        screen: the bfloat16 shadow of W_enc as it is now. It saves rounding the weights at every call; the answer is
            the same without it.

    Returns:
        values Float[Tensor, "n k"], indices Int32[Tensor, "n k"] ascending within a row.

    Raises:
        ValueError: shapes that do not fit, a wrong k, or a screen of earlier weights.
    """
    x, W_enc, b_enc = encoder_arguments("topk_encode", x, W_enc, b_enc)
    _check_k("topk_encode", k, len(W_enc))
    if screen is None or not _encoder.screens(x):
        return _ops.topk_encode(x, W_enc, b_enc, k, relu)
    _check(screen.W16.shape == W_enc.shape, "topk_encode", f"screen must be of W_enc {list(W_enc.shape)}", screen.W16)
    if screen.is_stale(W_enc):
        raise ValueError("topk_encode: W_enc has changed since the screen was made; call screen.refresh(W_enc)")
    return _ops.topk_encode(x, W_enc, b_enc, k, relu, screen.W16, screen.norms, screen.rests)


def decode_topk(values: Tensor, indices: Tensor, W_dec: Tensor, b_dec: Tensor | None = None) -> Tensor:
    """out[n] = b_dec + sum over slots j of values[n, j] * W_dec[indices[n, j]].

    Differentiable in values, W_dec (a sum over segments of one feature, no atomics) and b_dec.

    Args:
        values: Float[Tensor, "n k"].
        indices: Int[Tensor, "n k"], in any order.
        W_dec: Float[Tensor, "F d"].
        b_dec: Float[Tensor, "d"] or None.

    Returns:
        Float[Tensor, "n d"].

    Raises:
        ValueError: shapes that do not fit, or a feature id outside 0..F-1.
    """
    _check(values.ndim == 2, "decode_topk", "values must be [n, k]", values)
    shape = list(values.shape)
    _check(indices.shape == values.shape, "decode_topk", f"indices must be [n, k]={shape}", indices)
    n, k = values.shape
    indptr = _registry.regular_indptr(n, k, values.device)
    return _decode("decode_topk", indptr, indices.reshape(-1), values.reshape(-1), W_dec, b_dec)


def decode_csr(acts: SparseActivations, W_dec: Tensor, b_dec: Tensor | None = None) -> Tensor:
    """out[n] = b_dec + sum over entries e of row n of values[e] * W_dec[indices[e]].

    Differentiable in acts.values, W_dec and b_dec.

    Args:
        acts: n rows over F features.
        W_dec: Float[Tensor, "F d"].
        b_dec: Float[Tensor, "d"] or None.

    Returns:
        Float[Tensor, "n d"].

    Raises:
        ValueError: shapes that do not fit, or a feature id outside 0..F-1.
    """
    _check_weights("decode_csr", "W_dec", W_dec, acts.n_features, None)
    return _decode("decode_csr", acts.indptr, acts.indices, acts.values, W_dec, b_dec)


def sampled_dot(g: Tensor, W: Tensor, indptr: Tensor, indices: Tensor) -> Tensor:
    """out[e] = <g[row of e], W[indices[e]]> at the entries of a CSR pattern. Differentiable in g and W.

    Args:
        g: Float[Tensor, "n d"].
        W: Float[Tensor, "F d"].
        indptr: Int64[Tensor, "n+1"].
        indices: Int[Tensor, "nnz"].

    Returns:
        Float[Tensor, "nnz"].

    Raises:
        ValueError: shapes that do not fit, or a feature id outside 0..F-1.
    """
    _check(g.ndim == 2, "sampled_dot", "g must be [n, d]", g)
    _check_weights("sampled_dot", "W", W, None, g.shape[1])
    _check_pattern("sampled_dot", indptr, indices, g.shape[0])
    g, W = _floats(g, W)
    return _ops.sampled_dot(_rows(g), _rows(W), indptr.contiguous(), _int32(indices))


def segment_outer(indptr: Tensor, indices: Tensor, values: Tensor, x: Tensor, n_features: int) -> Tensor:
    """out[f] = sum over entries e of feature f of values[e] * x[row of e]: the weight gradient of a sparse layer.

    Each feature's entries are summed in order of row, by one thread: the same bits for any number of threads.
    Differentiable in values and x.

    Args:
        indptr: Int64[Tensor, "n+1"].
        indices: Int[Tensor, "nnz"].
        values: Float[Tensor, "nnz"].
        x: Float[Tensor, "n d"].
        n_features: F.

    Returns:
        Float[Tensor, "F d"].

    Raises:
        ValueError: shapes that do not fit, or a feature id outside 0..F-1.
    """
    _check(x.ndim == 2, "segment_outer", "x must be [n, d]", x)
    _check_pattern("segment_outer", indptr, indices, x.shape[0])
    nnz = list(indices.shape)
    _check(values.shape == indices.shape, "segment_outer", f"values must be [nnz]={nnz}", values)
    if not 0 < n_features <= INT32_MAX:
        raise ValueError(f"segment_outer: n_features must be in 1..{INT32_MAX}, got {n_features}")
    values, x = _floats(values, x)
    return _ops.segment_outer(indptr.contiguous(), _int32(indices), values.contiguous(), _rows(x), n_features)


def _decode(op: str, indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor | None) -> Tensor:
    _check_weights(op, "W_dec", W_dec, None, None)
    d = W_dec.shape[1]
    if b_dec is None:
        W_dec, values = _weights_and_floats(W_dec, values)
    else:
        turned = " (W_dec transposed?)" if b_dec.shape == W_dec.shape[:1] else ""
        _check(b_dec.shape == (d,), op, f"b_dec must be [d]=[{d}]{turned}", b_dec)
        W_dec, values, b_dec = _weights_and_floats(W_dec, values, b_dec)
        b_dec = b_dec.contiguous()
    return _ops.decode_csr(indptr.contiguous(), _int32(indices), values.contiguous(), _rows(W_dec), b_dec)


# ---- the door --------------------------------------------------------------------------------------------------------


def encoder_arguments(op: str, x: Tensor, W_enc: Tensor, b_enc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x [n, d_in], W_enc [F, d_in] and b_enc [F], checked and in order."""
    _check(x.ndim == 2, op, "x must be [n, d_in]", x)
    _check_weights(op, "W_enc", W_enc, None, x.shape[1])
    F = W_enc.shape[0]
    _check(b_enc.shape == (F,), op, f"b_enc must be [F]=[{F}]", b_enc)
    W_enc, x, b_enc = _weights_and_floats(W_enc, x, b_enc)
    return _rows(x), _rows(W_enc), b_enc.contiguous()


def _check(fits: bool, op: str, sentence: str, got: Tensor) -> None:
    if not fits:
        raise ValueError(f"{op}: {sentence}, got {list(got.shape)}")


def _check_k(op: str, k: int, F: int) -> None:
    if not 1 <= k <= F:
        raise ValueError(f"{op}: k must be in 1..F={F}, got {k}")


def _check_weights(op: str, name: str, W: Tensor, F: int | None, d: int | None) -> None:
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


def _check_pattern(op: str, indptr: Tensor, indices: Tensor, n: int) -> None:
    _check(indptr.shape == (n + 1,), op, f"indptr must be [n + 1]=[{n + 1}]", indptr)
    if indptr.dtype != torch.int64:
        raise ValueError(f"{op}: indptr must be int64, got {indptr.dtype}")
    _check(indices.ndim == 1, op, "indices must be [nnz]", indices)


def _floats(*tensors: Tensor) -> list[Tensor]:
    """All in float64 if one of them is, else all in float32."""
    for t in tensors:
        if not t.is_floating_point():
            raise ValueError(f"expected floating point tensors, got {t.dtype} {list(t.shape)}")
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    return [t.to(dtype) for t in tensors]


def _weights_and_floats(W: Tensor, *others: Tensor) -> list[Tensor]:
    """As `_floats`, but half precision weights on a GPU stay as they are: its kernels read them so, at half price."""
    if not (W.is_cuda and W.dtype in (torch.bfloat16, torch.float16)) or any(t.dtype == torch.float64 for t in others):
        return _floats(W, *others)
    return [W, *_floats(*others)]


def _int32(ids: Tensor) -> Tensor:
    """Feature ids as int32; one that does not fit becomes one that no backend accepts."""
    if ids.dtype == torch.int32:
        return ids.contiguous()
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"feature ids must be integers, got {ids.dtype} {list(ids.shape)}")
    return ids.clamp(-1, INT32_MAX).to(torch.int32).contiguous()


def _rows(t: Tensor) -> Tensor:
    """t with contiguous last dimension; the strides of the others are free."""
    return t if t.shape[-1] <= 1 or t.stride(-1) == 1 else t.contiguous()
