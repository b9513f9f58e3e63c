"""The contraction of attribution: pulled-back gradients against decoder rows of what is active at each position."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _registry, arguments
from .functional import _ops
from .sparse import SparseActivations


def contract(G: Tensor, acts: SparseActivations, W_dec: Tensor, out: Tensor | None = None) -> Tensor:
    """Edges of a batch of pulled-back targets: out[b, e] = values[e] * <G[b, row of e], W_dec[indices[e]]>.

    Where features write to several layers t, give all gradients and decoders at once,
    out[b, e] = values[e] * sum_t <G[t, b, row of e], W_dec[indices[e], t]>; or, with `out`, one layer after the other:
    the same bits. The rows of G and W_dec are read where they lie, whatever the strides of their leading dimensions,
    and as bfloat16 if they are; sums are float32. Nothing of size (nnz, d) is built. Not differentiable.

    Args:
        G: Float[Tensor, "b p d"] or Float[Tensor, "t b p d"], a gradient per target and position.
        acts: p rows over F features.
        W_dec: Float[Tensor, "F d"], or Float[Tensor, "F t d"] with a 4-dimensional G.
        out: Float[Tensor, "b nnz"] to add to, or None for a new one. Written in place where its dtype is that of the
            sums and its rows are contiguous (they may lie apart), else through a copy.

    Returns:
        Float[Tensor, "b nnz"]: `out`, or a new tensor, float64 if an input is and else float32.

    Raises:
        ValueError: shapes that do not fit, a feature id outside 0..F-1.
    """
    p = acts.n_rows
    if G.ndim == 4:
        n_layers, b, _, d = G.shape
        expected = [acts.n_features, n_layers, d]
        turned = " (transposed?)" if sorted(W_dec.shape) == sorted(expected) else ""
        arguments.check(list(W_dec.shape) == expected, "contract", f"W_dec must be [F, t, d]={expected}{turned}", W_dec)
        arguments.check(G.shape[2] == p, "contract", f"G must be [t, b, p, d]=[?, ?, {p}, ?]", G)
        arguments.check(n_layers > 0, "contract", "G must be [t, b, p, d] with a layer t", G)
    else:
        arguments.check(G.ndim == 3, "contract", "G must be [b, p, d] or [t, b, p, d]", G)
        arguments.check(G.shape[1] == p, "contract", f"G must be [b, p, d]=[?, {p}, ?]", G)
        arguments.check_weights("contract", "W_dec", W_dec, acts.n_features, G.shape[2])
        b = G.shape[0]
    if out is not None:
        arguments.check(out.shape == (b, acts.nnz), "contract", f"out must be [b, nnz]=[{b}, {acts.nnz}]", out)
    return _contract(G, acts.indptr, acts.indices, acts.values, W_dec, out)


def contract_topk(G: Tensor, values: Tensor, indices: Tensor, W_dec: Tensor) -> Tensor:
    """:func:`contract` for k slots at every position: out[b, p, j] = values[p, j] * <G[b, p], W_dec[indices[p, j]]>.

    Args:
        G: Float[Tensor, "b p d"] or Float[Tensor, "t b p d"].
        values: Float[Tensor, "p k"]; an empty slot (0) gives 0.
        indices: Int[Tensor, "p k"], in any order.
        W_dec: Float[Tensor, "F d"], or Float[Tensor, "F t d"] with a 4-dimensional G.

    Returns:
        Float[Tensor, "b p k"].

    Raises:
        ValueError: shapes that do not fit, or a feature id outside 0..F-1.
    """
    arguments.check(values.ndim == 2, "contract_topk", "values must be [p, k]", values)
    p, k = values.shape
    if G.ndim == 3:
        arguments.check_weights("contract_topk", "W_dec", W_dec, None, G.shape[2])
    arguments.check(indices.shape == (p, k), "contract_topk", f"indices must be [p, k]=[{p}, {k}]", indices)
    indptr = _registry.regular_indptr(p, k, values.device)
    slots = SparseActivations(indptr, arguments.int32(indices.reshape(-1)), values.reshape(-1), W_dec.shape[0])
    return contract(G, slots, W_dec).unflatten(1, (p, k))


def _contract(G: Tensor, indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor, out: Tensor | None) -> Tensor:
    G, W_dec, values = G.detach(), W_dec.detach(), values.detach()
    double = torch.float64 in (G.dtype, W_dec.dtype, values.dtype)
    G, W_dec = _readable(G, double), _readable(W_dec, double)
    values = values.to(torch.float64 if double else torch.float32).contiguous()
    pattern = indptr.contiguous(), arguments.int32(indices)
    if G.ndim == 3 and out is None:
        return _ops.contract(G, *pattern, values, W_dec)
    fits = out is not None and out.dtype == values.dtype and (out.shape[1] <= 1 or out.stride(1) == 1)
    total = out if out is not None and fits else values.new_zeros(G.shape[-3], indices.shape[0])
    layers = (G, W_dec) if G.ndim == 4 else (G[None], W_dec[:, None])
    _ops.contract_into(total, layers[0], *pattern, values, layers[1])
    if out is None or fits:
        return total
    return out.add_(total)


def _readable(t: Tensor, double: bool) -> Tensor:
    """t as the kernels take it: bfloat16 stays, unless everything is float64; contiguous in the last dimension."""
    if not t.is_floating_point():
        raise ValueError(f"contract: expected floating point tensors, got {t.dtype} {list(t.shape)}")
    if double:
        return arguments.rows(t.double())
    return arguments.rows(t if t.dtype == torch.bfloat16 else t.float())
