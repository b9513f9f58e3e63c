"""The pieces of a GPU encoder in plain torch: what `ops.gpu.encoder` puts together where there are no kernels."""

from __future__ import annotations

import torch
from torch import Tensor

MAXIMA_WIDTH = 64


def encode_gemm(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    h: Tensor,
    maxima: Tensor,
    config: dict | None = None,  # noqa: ARG001
) -> None:
    """h = x W_enc^T + b_enc (n, F), and the maximum of every 64 columns of it (n, ceil(F/64)); NaN is the largest."""
    h.copy_(x.float() @ W_enc.float().T + b_enc.float())
    missing = -h.shape[1] % MAXIMA_WIDTH
    padded = torch.nn.functional.pad(h, (0, missing), value=-torch.inf)
    maxima.copy_(padded.unflatten(1, (-1, MAXIMA_WIDTH)).amax(2))


def round_rows(t: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """scale * t (n, d) in float16, the norms of its rows before that (n), and of what rounding took (n).

    The norm of a row is zero only where all of the row is.
    """
    scaled = t * scale
    half = scaled.half()
    norms, rests = (torch.linalg.vector_norm(rows, dim=1) for rows in (scaled, scaled - half.float()))
    return half, torch.where((t != 0).any(1) & (norms < 1e-30), 1e-30, norms), rests


def topk_select_tiles(h: Tensor, maxima: Tensor, k: int, relu: bool) -> tuple[Tensor, Tensor]:
    """Top-k of each row of h (n, F), reading only the k tiles of the largest maxima; needs at least k tiles.

    Of the elements above the k-th largest maximum there are fewer than k, all in tiles chosen before the ties; of
    those equal to it the lowest ids are wanted, and the lowest tiles hold them.
    """
    n, F = h.shape
    tiles = maxima.sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values
    columns = (tiles[:, :, None] * MAXIMA_WIDTH + torch.arange(MAXIMA_WIDTH, device=h.device)).flatten(1)
    seen = h.gather(1, columns.clamp(max=F - 1)).masked_fill(columns >= F, -torch.inf)
    slots = seen.sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values
    values = seen.gather(1, slots)
    return torch.where(values <= 0, 0, values) if relu else values, columns.gather(1, slots).int()


def select_running(h: Tensor, first_id: int, values: Tensor, indices: Tensor, *, relu: bool = False) -> None:
    """Lets the columns first_id, first_id + 1, ... of the pre-activations h (n, c) join a running top-k, in place.

    values (n, k) of h's dtype and indices (n, k) Int32: the best of the columns before, in ascending order. Ties stay
    with the lower id; relu is for the last chunk.
    """
    ids = torch.arange(first_id, first_id + h.shape[1], dtype=torch.int32, device=h.device).expand(h.shape)
    both, names = torch.cat([values, h], 1), torch.cat([indices, ids], 1)
    slots = both.sort(dim=1, descending=True, stable=True).indices[:, : values.shape[1]].sort(dim=1).values
    best = both.gather(1, slots)
    values.copy_(torch.where(best <= 0, 0, best) if relu else best)
    indices.copy_(names.gather(1, slots))


def threshold_select(h: Tensor, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What of h (n, c) is above theta (c), or NaN, and not zero, as sparse rows: indptr, indices, values."""
    kept = ((h > theta) | h.isnan()) & (h != 0)
    row, ids = kept.nonzero(as_tuple=True)
    indptr = torch.nn.functional.pad(kept.sum(1).cumsum(0), (1, 0))
    return indptr, ids.int(), h[row, ids]


def topk_settle(
    candidates: Tensor, features: Tensor, slack: Tensor, relative: float,
    x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The exact top k among the candidates of each row, and whether features outside them might compete.

    Candidates (n, C), the C largest pre-activations of each row of x as they were stored, and their features, in
    ascending order: each is within relative * |candidate| + slack[row] of the exact value, which is that of float64
    arithmetic rounded once to float32. Returns values Float32 (n, k), indices Int32 (n, k), uncertain Int8 (n).
    """
    stored = candidates.float()
    error = relative * stored.abs() + slack[:, None]
    order = stored.sort(dim=1, descending=True).indices
    kth, last = (stored.gather(1, order[:, j : j + 1]) for j in (k - 1, order.shape[1] - 1))
    floor = kth - (relative * kth.abs() + slack[:, None])
    reach = relative * last.abs() + slack[:, None]
    settled = (last + reach < floor) | ((reach == 0) & (floor == kth))
    uncertain = ~settled[:, 0] & (candidates.shape[1] < W_enc.shape[0])

    dots = torch.einsum("nd,ncd->nc", x.double(), W_enc[features.long()].double())
    exact = (dots + b_enc[features.long()].double()).float()
    # Written so that NaN keeps a candidate. What is beaten goes behind even -inf.
    beaten = stored + error < floor
    order = exact.sort(dim=1, descending=True, stable=True).indices
    order = order.gather(1, beaten.gather(1, order).sort(dim=1, stable=True).indices)
    slots = order[:, :k].sort(dim=1).values
    values = exact.gather(1, slots)
    values = torch.where(values <= 0, 0, values) if relu else values
    return values, features.gather(1, slots), uncertain.to(torch.int8)


def topk_exhaust_(
    values: Tensor, indices: Tensor, uncertain: Tensor, x: Tensor, W_enc: Tensor, b_enc: Tensor, relu: bool
) -> None:
    """Replace the top k of the rows that are uncertain by the exact one over all features."""
    rows = uncertain.nonzero()[:, 0]
    if len(rows):
        h = (x[rows].double() @ W_enc.double().T + b_enc.double()).float()
        slots = h.sort(dim=1, descending=True, stable=True).indices[:, : values.shape[1]].sort(dim=1).values
        best = h.gather(1, slots)
        values[rows] = torch.where(best <= 0, 0, best) if relu else best
        indices[rows] = slots.int()
