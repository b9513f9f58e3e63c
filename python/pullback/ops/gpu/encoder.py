"""The encoder on a GPU: the exact top k at the price of a GEMM in the precision of the weights.

The answer is that of products of the stored weights accumulated in float64 and rounded once to float32, although the
GEMM rounds its results to bfloat16, or its float32 operands to TF32:

1. a GEMM gives every pre-activation within a known error, and a select keeps the `SPARE` + k largest of each row;
2. `topk_settle` evaluates again those that may be among the k largest, and picks;
3. `topk_exhaust_` goes through all features of the rows where more than `SPARE` compete, which is rare.

Nothing waits for the device. Step 1 goes one of two ways, by a table (`gpu_table`): "chunks" is a library GEMM in
blocks that stay in L2, a select for each and a running merge; "tiles" is a GEMM that also writes the maximum of every
64 features, after which a select reads only the tiles it has to. Neither holds more than `SCRATCH` bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .. import dispatch
from . import table

SCRATCH = 256 * 2**20  # bytes of pre-activations at a time
SPARE = 64  # candidates beyond k
MOST_SLOTS = 512  # of k for which candidates of a row are sorted in one block
MAXIMA_WIDTH = 64  # features under one maximum

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Relative error of a pre-activation as stored: twice the unit roundoff of its dtype, which leaves room for the
# roundings of the bound itself and for the one of the exact value.
_RELATIVE = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: 2.0**-22}


def topk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, relu: bool) -> tuple[Tensor, Tensor]:
    """Top-k of x @ W_enc.T + b_enc: Float32 'n k' values, Int32 'n k' indices, ascending within a row.

    x Float 'n d', W_enc Float 'f d', b_enc Float 'f', with W_enc in one of `DTYPES`. x is rounded to the dtype of the
    weights first, as a GEMM would have it.
    """
    x = x.to(W_enc.dtype)
    (n, d), F = x.shape, W_enc.shape[0]
    values = torch.empty(n, k, device=x.device)
    indices = torch.empty(n, k, dtype=torch.int32, device=x.device)
    if n == 0:
        return values, indices
    b_enc = b_enc.contiguous()
    plan = table.plan(_arch(x.device), W_enc.dtype, d, F) if x.is_cuda else table.DEFAULT
    slack = _slack(x, W_enc, b_enc)
    settle, exhaust_ = (dispatch.lookup(op, x.device) for op in ("topk_settle", "topk_exhaust_"))
    C = min(F, k + SPARE)
    find = _by_tiles if plan.way == "tiles" and -(-F // MAXIMA_WIDTH) >= C else _by_chunks
    start = 0
    for candidates, features in find(x, W_enc, b_enc, C, plan):
        rows = slice(start, start + len(candidates))
        values[rows], indices[rows], uncertain = settle(
            candidates, features, slack[rows], _RELATIVE[W_enc.dtype], x[rows], W_enc, b_enc, k, relu
        )
        exhaust_(values[rows], indices[rows], uncertain, x[rows], W_enc, b_enc, relu)
        uncertain_rows(x.device).add_(uncertain.sum())
        start = rows.stop
    return values, indices


def _by_chunks(x: Tensor, W_enc: Tensor, b_enc: Tensor, C: int, plan: table.Plan) -> Iterator[tuple[Tensor, Tensor]]:
    """The C largest of each row, block of rows after block of rows, in ascending order of feature."""
    n, F = x.shape[0], W_enc.shape[0]
    select, select_running = (dispatch.lookup(op, x.device) for op in ("topk_select", "select_running"))
    width = min(F, max(plan.features, C))
    height = max(1, min(n, plan.rows, SCRATCH // (width * x.element_size())))
    h = x.new_empty(height, width)
    bias = b_enc.to(x.dtype)
    for top in range(0, n, height):
        rows = x[top : top + height]
        candidates = features = bias.new_empty(0)
        for left in range(0, F, width):
            block = slice(left, min(F, left + width))
            part = h.view(-1)[: len(rows) * (block.stop - left)].view(len(rows), -1)
            with _sums_in_full():
                torch.addmm(bias[block], rows, W_enc[block].T, out=part)
            if left == 0:
                candidates, features = select(part, C, False)
            else:
                select_running(part, left, candidates, features)
        yield candidates.float(), features


def _by_tiles(x: Tensor, W_enc: Tensor, b_enc: Tensor, C: int, plan: table.Plan) -> Iterator[tuple[Tensor, Tensor]]:
    """As :func:`_by_chunks`, by way of the maxima of tiles."""
    n, F = x.shape[0], W_enc.shape[0]
    gemm, select = (dispatch.lookup(op, x.device) for op in ("encode_gemm", "topk_select_tiles"))
    tiles = -(-F // MAXIMA_WIDTH)
    height = max(1, min(n, plan.rows, SCRATCH // ((F + tiles) * x.element_size())))
    h, maxima = x.new_empty(height, F), x.new_empty(height, tiles)
    for top in range(0, n, height):
        rows = x[top : top + height]
        part, part_maxima = h[: len(rows)], maxima[: len(rows)]
        gemm(rows, W_enc, b_enc, part, part_maxima, _tf32(x), dict(plan.tile) if plan.tile else None)
        candidates, features = select(part, part_maxima, C, False)
        yield candidates.float(), features


def _slack(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
    """Float32[Tensor, "n"]: the error of a row's pre-activations before they are stored.

    d products added up in float32 (a matrix unit may chop where IEEE rounds: 2^-23 a term), of operands rounded to
    TF32 (2^-10 each) if they may be; and the bias rounded to the dtype of the GEMM. A row of zeros has no error.
    """
    d = x.shape[1]
    relative = (d + 8) * 2.0**-23 + (2.0**-9 if _tf32(x) else 0.0)
    x_norms, W_norms = (torch.linalg.vector_norm(t, dim=1, dtype=torch.float32) for t in (x, W_enc))
    size = x_norms * W_norms.amax() + torch.where(x_norms > 0, b_enc.abs().amax().float(), 0)
    rounded = (b_enc.double() - b_enc.to(x.dtype).double()).abs().amax().float()
    # A norm in float32 may itself be rounded down, by less than the factor.
    return 1.01 * (relative * size + rounded)


def _tf32(x: Tensor) -> bool:
    """Whether torch may round the float32 operands of a GEMM on the device of `x` to TF32."""
    if x.dtype != torch.float32 or not x.is_cuda:
        return False
    try:
        return bool(torch.backends.cuda.matmul.allow_tf32)
    except RuntimeError:  # it was set by way of torch's newer, per-operator names
        return torch.backends.cuda.matmul.fp32_precision != "ieee"


@contextmanager
def _sums_in_full() -> Iterator[None]:
    """cuBLAS adds up partial sums of half precision GEMMs in float32: the error bound counts on it."""
    flags = torch.backends.cuda.matmul
    before = flags.allow_bf16_reduced_precision_reduction, flags.allow_fp16_reduced_precision_reduction
    flags.allow_bf16_reduced_precision_reduction = flags.allow_fp16_reduced_precision_reduction = False
    try:
        yield
    finally:
        flags.allow_bf16_reduced_precision_reduction, flags.allow_fp16_reduced_precision_reduction = before


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
