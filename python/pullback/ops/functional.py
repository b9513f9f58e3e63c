"""The public ops: check shapes, bring dtypes and layouts into order, and call `torch.ops.pullback`.

bfloat16 and float16 inputs are computed, and returned, in float32; float64 anywhere makes everything float64. On a GPU
half precision weights are read as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _encoder, _registry, arguments
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
    arguments.check(h.ndim == 2, "topk_select", "h must be [n, F]", h)
    arguments.check_k("topk_select", k, h.shape[1])
    (h,) = arguments.floats(h)
    return _ops.topk_select(arguments.rows(h), k, relu)


def topk_encode(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, relu: bool = True, screen: Screen | None = None
) -> tuple[Tensor, Tensor]:
    """`topk_select(x @ W_enc.T + b_enc, k, relu)` without the N x F matrix.

    The pre-activations compared and returned are exact: accumulated in float64 and rounded once, whatever the GEMM, the
    chunks, the threads or the instruction set (float64, and k > 512 on a GPU: what the GEMM gives). Devices may differ
    in the order of that sum, and so in a last bit, rarely.
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
    x, W_enc, b_enc = arguments.encoder_arguments("topk_encode", x, W_enc, b_enc)
    arguments.check_k("topk_encode", k, len(W_enc))
    if screen is None or not _encoder.screens(x):
        return _ops.topk_encode(x, W_enc, b_enc, k, relu)
    screen.must_follow("topk_encode", W_enc)
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
    arguments.check(values.ndim == 2, "decode_topk", "values must be [n, k]", values)
    shape = list(values.shape)
    arguments.check(indices.shape == values.shape, "decode_topk", f"indices must be [n, k]={shape}", indices)
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
    arguments.check_weights("decode_csr", "W_dec", W_dec, acts.n_features, None)
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
    arguments.check(g.ndim == 2, "sampled_dot", "g must be [n, d]", g)
    arguments.check_weights("sampled_dot", "W", W, None, g.shape[1])
    arguments.check_pattern("sampled_dot", indptr, indices, g.shape[0])
    g, W = arguments.floats(g, W)
    return _ops.sampled_dot(arguments.rows(g), arguments.rows(W), indptr.contiguous(), arguments.int32(indices))


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
    arguments.check(x.ndim == 2, "segment_outer", "x must be [n, d]", x)
    arguments.check_pattern("segment_outer", indptr, indices, x.shape[0])
    nnz = list(indices.shape)
    arguments.check(values.shape == indices.shape, "segment_outer", f"values must be [nnz]={nnz}", values)
    if not 0 < n_features <= INT32_MAX:
        raise ValueError(f"segment_outer: n_features must be in 1..{INT32_MAX}, got {n_features}")
    values, x = arguments.floats(values, x)
    return _ops.segment_outer(
        indptr.contiguous(), arguments.int32(indices), values.contiguous(), arguments.rows(x), n_features
    )


def _decode(op: str, indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor | None) -> Tensor:
    arguments.check_weights(op, "W_dec", W_dec, None, None)
    d = W_dec.shape[1]
    if b_dec is None:
        W_dec, values = arguments.weights_and_floats(W_dec, values)
    else:
        turned = " (W_dec transposed?)" if b_dec.shape == W_dec.shape[:1] else ""
        arguments.check(b_dec.shape == (d,), op, f"b_dec must be [d]=[{d}]{turned}", b_dec)
        W_dec, values, b_dec = arguments.weights_and_floats(W_dec, values, b_dec)
        b_dec = b_dec.contiguous()
    return _ops.decode_csr(
        indptr.contiguous(), arguments.int32(indices), values.contiguous(), arguments.rows(W_dec), b_dec
    )
