"""The features that write most along a direction, out of all features, without a row of all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from . import arguments, dispatch
from .functional import sampled_dot, topk_select
from .reference import attribution as reference
from .sparse import SparseActivations

# Elements held at a time: products of a chunk of targets with a block of features, and decoder rows widened for them.
SCRATCH = 2**22
TARGETS = 1024


def top_pullbacks(
    v: Tensor, W_dec: Tensor, k: int, scale: Tensor | SparseActivations | None = None, absolute: bool = False
) -> tuple[Tensor, Tensor]:
    """For every target the k features f with the largest scale[f] * <W_dec[f], v>: what feeds it, whatever the input.

    Products are formed a block of features at a time and the best k are kept on the way: memory does not grow with F.
    They are what the GEMM gives (a rounding in the order of summation may settle near ties); of equal products the
    lower feature id comes first, NaN before everything. Not differentiable.

    Args:
        v: Float[Tensor, "r d"], targets.
        W_dec: Float[Tensor, "F d"].
        k: 1..F.
        scale: Float[Tensor, "F"], one factor a feature; or r rows over F features, of which only the active ones count;
            or None for 1.
        absolute: compare absolute values. The values returned keep their sign.

    Returns:
        values Float[Tensor, "r k"] and ids Int32[Tensor, "r k"], from the largest down. Where a row of `scale` has
        fewer than k features the rest has value 0 and id -1.

    Raises:
        ValueError: shapes that do not fit, a wrong k, or an id of `scale` outside 0..F-1.
    """
    arguments.check(v.ndim == 2, "top_pullbacks", "v must be [r, d]", v)
    arguments.check_weights("top_pullbacks", "W_dec", W_dec, None, v.shape[1])
    (r, _), F = v.shape, W_dec.shape[0]
    arguments.check_k("top_pullbacks", k, F)
    v, W_dec = v.detach(), W_dec.detach()
    if isinstance(scale, SparseActivations):
        if scale.shape != (r, F):
            raise ValueError(f"top_pullbacks: scale must be [r, F]=[{r}, {F}], got {list(scale.shape)}")
        scale = scale.detach()
    elif scale is not None:
        arguments.check(scale.shape == (F,), "top_pullbacks", f"scale must be [F]=[{F}]", scale)
        scale = scale.detach()
    if dispatch.forced() == "reference":
        factors = scale.values if isinstance(scale, SparseActivations) else v if scale is None else scale
        v, W_dec, factors = arguments.floats(v, W_dec, factors)
        scale = None if scale is None else scale.to(dtype=factors.dtype)
        return reference.top_pullbacks(v, W_dec, k, scale, absolute)
    if isinstance(scale, SparseActivations):
        return _among_active(v, W_dec, k, scale, absolute)
    return _among_all(v, W_dec, k, scale, absolute)


def _among_all(v: Tensor, W_dec: Tensor, k: int, scale: Tensor | None, absolute: bool) -> tuple[Tensor, Tensor]:
    r, (F, d) = v.shape[0], W_dec.shape
    double = torch.float64 in (v.dtype, W_dec.dtype, v.dtype if scale is None else scale.dtype)
    dtype = torch.float64 if double else torch.float32
    v, scale = v.to(dtype), None if scale is None else scale.to(dtype)
    values, ids = v.new_empty(r, k), v.new_empty(r, k, dtype=torch.int32)
    targets = max(1, min(r, TARGETS))
    block = max(1, min(F, SCRATCH // targets, SCRATCH // max(1, d)))
    products = v.new_empty(targets * block)
    magnitudes = v.new_empty(targets * block) if absolute else None
    for start in range(0, r, targets):
        rows = slice(start, min(start + targets, r))
        n = rows.stop - start
        best, best_ids = v.new_empty(n, 0), ids.new_empty(n, 0)
        for first in range(0, F, block):
            some = slice(first, min(first + block, F))
            width = some.stop - first
            h = products[: n * width].view(n, width)
            torch.mm(v[rows], W_dec[some].to(dtype).T, out=h)
            if scale is not None:
                h *= scale[some]
            key = h if magnitudes is None else torch.abs(h, out=magnitudes[: n * width].view(n, width))
            _, chosen = topk_select(key, min(k, width), relu=False)
            # What is held has lower ids than this block, and both ascend: the lower position is the lower id.
            best = torch.cat([best, h.gather(1, chosen.long())], 1)
            best_ids = torch.cat([best_ids, chosen + first], 1)
            _, kept = topk_select(best.abs() if absolute else best, min(k, best.shape[1]), relu=False)
            best, best_ids = best.gather(1, kept.long()), best_ids.gather(1, kept.long())
        order = (best.abs() if absolute else best).argsort(dim=1, descending=True, stable=True)
        values[rows], ids[rows] = best.gather(1, order), best_ids.gather(1, order)
    return values, ids


def _among_active(v: Tensor, W_dec: Tensor, k: int, scale: SparseActivations, absolute: bool) -> tuple[Tensor, Tensor]:
    dots, factors = arguments.floats(sampled_dot(arguments.rows(v), W_dec, scale.indptr, scale.indices), scale.values)
    products = dots * factors
    row, n = scale.rows(), scale.n_rows
    # By product within a row: two stable sorts, the second of which keeps the order of the first.
    order = (products.abs() if absolute else products).argsort(descending=True, stable=True)
    order = order[row[order].argsort(stable=True)]
    place = torch.arange(scale.nnz, device=row.device) - scale.indptr[row]
    kept = place < k
    values = products.new_zeros(n, k)
    ids = torch.full((n, k), -1, dtype=torch.int32, device=v.device)
    slots = row[kept], place[kept]
    chosen = order[kept]
    values[slots], ids[slots] = products[chosen], arguments.int32(scale.indices)[chosen]
    return values, ids
