"""The encoder on a GPU: the exact top k at the price of a GEMM in 16 bits.

The answer is that of products of the stored weights accumulated in float64 and rounded once to float32, although the
GEMM rounds its results to 16 bits, and float32 operands to float16 (scaled, so that its range holds them):

1. a GEMM gives every pre-activation within a known error, and a select keeps some more than the k largest of each row;
2. `topk_settle` evaluates again those that may be among the k largest, and picks;
3. `topk_exhaust_` goes through all features of the rows where others might compete, which is rare.

Nothing waits for the device. Step 1 goes one of two ways, by a table (`ops.gpu.table`): "chunks" is a library GEMM in
blocks that stay in L2, a select for each and a running merge; "tiles" is a GEMM that also writes the maximum of every
64 features, after which a select reads only the tiles it has to. Neither holds more than `SCRATCH` bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from .. import dispatch
from . import table

SCRATCH = 256 * 2**20  # bytes of pre-activations at a time
SPARE = 64  # candidates beyond k, at least; else 2 k, up to four times this
MOST_SLOTS = 512  # of k for which candidates of a row are sorted in one block
MAXIMA_WIDTH = 64  # features under one maximum
TILE_ROWS = 128  # of the GEMM of "tiles", which leaves no tile half empty if it can

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Relative error of a pre-activation as stored: twice the unit roundoff of its dtype, which leaves room for the
# roundings of the bound itself and for the one of the exact value.
_RELATIVE = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}

# float32 weights are multiplied in float16 as 256 w, so that rows of any usual norm keep all their bits, and inputs are
# scaled so that neither they nor a pre-activation can pass 2^15, half of what there is.
_WEIGHT_SCALE = 256.0
_LARGEST = 2.0**15


def topk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, relu: bool) -> tuple[Tensor, Tensor]:
    """Top-k of x @ W_enc.T + b_enc: Float32 'n k' values, Int32 'n k' indices, ascending within a row.

    x Float 'n d', W_enc Float 'f d', b_enc Float 'f', with W_enc in one of `DTYPES`. x is rounded to the dtype of the
    weights first, as a GEMM would have it.
    """
    x = x.to(W_enc.dtype)
    (n, d), F = x.shape, W_enc.shape[0]
    if n == 0:
        return x.new_empty(0, k, dtype=torch.float32), x.new_empty(0, k, dtype=torch.int32)
    b_enc = b_enc.contiguous()
    plan = table.plan(_arch(x.device), W_enc.dtype, d, F) if x.is_cuda else table.DEFAULT
    C = min(F, k + max(SPARE, min(2 * k, 4 * SPARE)))
    screen = _screen(x, W_enc, b_enc)
    find = _by_tiles if plan.way == "tiles" and -(-F // MAXIMA_WIDTH) >= C else _by_chunks
    candidates, features = _stacked(find(screen, C, plan))
    settle, exhaust_ = (dispatch.lookup(op, x.device) for op in ("topk_settle", "topk_exhaust_"))
    values, indices, uncertain = settle(
        candidates, features, screen.slack, _RELATIVE[screen.W.dtype], x, W_enc, b_enc, k, relu
    )
    exhaust_(values, indices, uncertain, x, W_enc, b_enc, relu)
    uncertain_rows(x.device).add_(uncertain.sum())
    return values, indices


class _Screen(NamedTuple):
    """What the GEMM multiplies, scaled, and how far from the (scaled) truth its results are at most."""

    x: Tensor
    """Half[Tensor, "n d"]"""
    W: Tensor
    """Half[Tensor, "F d"]"""
    b: Tensor
    """Float32[Tensor, "F"]"""
    slack: Tensor
    """Float32[Tensor, "n"]: the error of a row's pre-activations before they are stored."""


def _screen(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> _Screen:
    """The operands in 16 bits. Sources of error, each bounded by Cauchy-Schwarz with the largest row of W: operands
    that were rounded, by the norms of what that took; d products added up in float32 (a matrix unit may chop where IEEE
    rounds: 2^-23 a term); results below the normal numbers of their dtype; the bias rounded. A row of zeros only has
    the last one.
    """
    b = b_enc.float()
    if W_enc.dtype == torch.float32:
        round_rows = dispatch.lookup("round_rows", x.device)
        W, W_norms, W_rests = round_rows(W_enc, torch.full((), _WEIGHT_SCALE, device=x.device))
        size = torch.linalg.vector_norm(x, dim=1).amax()
        reach = torch.maximum(size * W_norms.amax() + _WEIGHT_SCALE * b.abs().amax(), size)
        # A power of two, by the bits of its exponent: scaling is then exact.
        scale = ((_LARGEST / reach).clamp(1e-30, 1e30).view(torch.int32) & 0x7F800000).view(torch.float32)
        x, x_norms, x_rests = round_rows(x, scale)
        b = b * scale * _WEIGHT_SCALE
        W_rest = W_rests.amax()
    else:
        W, x_rests, W_rest = W_enc, 0.0, 0.0
        x_norms, W_norms = (torch.linalg.vector_norm(t, dim=1, dtype=torch.float32) for t in (x, W))
    W_norm, smallest = W_norms.amax(), torch.finfo(x.dtype).tiny * torch.finfo(x.dtype).eps
    sums = (x.shape[1] + 8) * 2.0**-23 * ((x_norms + x_rests) * (W_norm + W_rest) + b.abs().amax())
    operands = x_rests * W_norm + (x_norms + x_rests) * W_rest
    rounded = (b - b.to(x.dtype).float()).abs().amax()
    # A norm in float32 may itself be rounded down, by less than the factor.
    return _Screen(x, W, b, 1.01 * (torch.where(x_norms > 0, sums + operands + smallest, 0) + rounded))


def _stacked(parts: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Candidates and features of all rows from those of blocks of rows."""
    candidates, features = zip(*parts, strict=True)
    return (candidates[0], features[0]) if len(candidates) == 1 else (torch.cat(candidates), torch.cat(features))


def _by_chunks(screen: _Screen, C: int, plan: table.Plan) -> Iterator[tuple[Tensor, Tensor]]:
    """The C largest of each row as stored, block of rows after block of rows, in ascending order of feature."""
    x, W, (n, F) = screen.x, screen.W, (len(screen.x), len(screen.W))
    select, select_running = (dispatch.lookup(op, x.device) for op in ("topk_select", "select_running"))
    width = min(F, max(plan.features, C))
    height = max(1, min(n, plan.rows, SCRATCH // (width * x.element_size())))
    h = x.new_empty(height, width)
    bias = screen.b.to(x.dtype)
    for top in range(0, n, height):
        rows = x[top : top + height]
        candidates = features = bias.new_empty(0)
        for left in range(0, F, width):
            block = slice(left, min(F, left + width))
            part = h.view(-1)[: len(rows) * (block.stop - left)].view(len(rows), -1)
            with _sums_in_full():
                torch.addmm(bias[block], rows, W[block].T, out=part)
            if left == 0:
                candidates, features = select(part, C, False)
            else:
                select_running(part, left, candidates, features)
        yield candidates, features


def _by_tiles(screen: _Screen, C: int, plan: table.Plan) -> Iterator[tuple[Tensor, Tensor]]:
    """As :func:`_by_chunks`, by way of the maxima of tiles."""
    x, W, (n, F) = screen.x, screen.W, (len(screen.x), len(screen.W))
    gemm, select = (dispatch.lookup(op, x.device) for op in ("encode_gemm", "topk_select_tiles"))
    tiles = -(-F // MAXIMA_WIDTH)
    most = max(1, min(n, plan.rows, SCRATCH // ((F + tiles) * x.element_size())))
    alike = -(-n // -(-n // most))
    height = min(most, -(-alike // TILE_ROWS) * TILE_ROWS)
    h, maxima = x.new_empty(height, F), x.new_empty(height, tiles)
    for top in range(0, n, height):
        rows = x[top : top + height]
        part, part_maxima = h[: len(rows)], maxima[: len(rows)]
        gemm(rows, W, screen.b, part, part_maxima, dict(plan.tile) if plan.tile else None)
        yield select(part, part_maxima, C, False)


@contextmanager
def _sums_in_full() -> Iterator[None]:
    """cuBLAS adds up 16-bit products in float32, whatever the settings of the process: the error bound counts on it."""
    flags, names = torch.backends.cuda.matmul, _FLAGS
    before = [getattr(flags, name) for name in names]
    for name in names:
        setattr(flags, name, False)
    try:
        yield
    finally:
        for name, value in zip(names, before, strict=True):
            setattr(flags, name, value)


_FLAGS = [
    "allow_bf16_reduced_precision_reduction",
    "allow_fp16_reduced_precision_reduction",
    *(["allow_fp16_accumulation"] if hasattr(torch.backends.cuda.matmul, "allow_fp16_accumulation") else []),
]


_uncertain: dict[torch.device, Tensor] = {}


def uncertain_rows(device: torch.device) -> Tensor:
    """Int64 scalar on `device`: how many rows had to be evaluated in full since the process began."""
    if device not in _uncertain:
        with torch.inference_mode(False):
            _uncertain[device] = torch.zeros((), dtype=torch.int64, device=device)
    return _uncertain[device]


def _arch(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{10 * major + minor}"
