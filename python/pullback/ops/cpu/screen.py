"""The compiled certified screen: borrowed memory handed to `pullback._C`. Everything is float32 on the CPU."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from pullback import _C

from .borrow import optional, view


class Candidates(NamedTuple):
    """Of each row, the features that may matter: see csrc/kernels.h."""

    ids: Tensor
    lows: Tensor
    highs: Tensor
    counts: Tensor
    bounds: Tensor
    limits: Tensor


def screen_block(
    y: Tensor,
    first: int,
    bias: Tensor,
    norms: Tensor,
    rests: Tensor | None,
    x_norms: Tensor,
    x_rests: Tensor | None,
    gamma: float,
    rho: float,
    k: int,
    thresholds: Tensor | None,
    candidates: Candidates,
) -> None:
    """Add what may matter of the columns y (R, w) ~ x W^T of features first, first + 1, ... to the candidates."""
    weights = view(bias), view(norms), optional(rests), view(x_norms), optional(x_rests)
    _C.screen_block(view(y), first, *weights, gamma, rho, k, optional(thresholds), [view(t) for t in candidates])


def pack_tiles(x: Tensor, panels: Tensor) -> None:
    """panels = x (n, d) bfloat16, as `screen_product` takes it."""
    _C.pack_tiles(view(x), view(panels))


def screen_product(
    panels: Tensor,
    W: Tensor,
    first: int,
    bias: Tensor,
    norms: Tensor,
    rests: Tensor,
    x_norms: Tensor,
    x_rests: Tensor,
    gamma: float,
    rho: float,
    k: int,
    thresholds: Tensor | None,
    candidates: Candidates,
) -> None:
    """Add what may matter of x W^T, made on the way and stored nowhere, to the candidates: see `screen_block`."""
    weights = view(W), first, view(bias), view(norms), view(rests), view(x_norms), view(x_rests)
    _C.screen_product(view(panels), *weights, gamma, rho, k, optional(thresholds), [view(t) for t in candidates])


def settle_topk(
    x: Tensor, W: Tensor, b: Tensor, candidates: Candidates, values: Tensor, indices: Tensor, relu: bool
) -> None:
    """Write the exact top-k of the rows whose candidates settle it."""
    views = [view(t) for t in candidates]
    _C.settle_topk(view(x), view(W), view(b), views, view(values), view(indices), relu)


def settle_threshold(x: Tensor, W: Tensor, b: Tensor, thresholds: Tensor, candidates: Candidates) -> None:
    """Leave of the candidates those above their threshold, with their exact pre-activation in `lows`."""
    _C.settle_threshold(view(x), view(W), view(b), view(thresholds), [view(t) for t in candidates])


def evaluate_rows(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """Float32[Tensor, 'n F']: the pre-activations of whole rows, with the very bits that candidates get."""
    h = x.new_empty(len(x), len(W))
    _C.evaluate_rows(view(x), view(W), view(b), view(h))
    return h


def norm_rows(rows: Tensor) -> Tensor:
    """Float32[Tensor, 'n'], not below the Euclidean norms of float32 rows (n, d)."""
    norms = rows.new_empty(rows.shape[0])
    _C.norm_rows(view(rows), view(norms))
    return norms


def shadow_rows(rows: Tensor, W16: Tensor, norms: Tensor, rests: Tensor) -> None:
    """W16 = bf16(rows), with upper bounds of the norms of rows and of rows - W16: see `screen.Screen`."""
    _C.shadow_rows(view(rows), view(W16), view(norms), view(rests))
