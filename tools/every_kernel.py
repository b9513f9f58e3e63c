"""Run every CUDA and Triton kernel on a GPU once, on small inputs: what a memory checker is given to watch.

    python tools/every_kernel.py [--names]

With --names, the profiler says which kernels ran: exits with 1 if one of kernels/ did not. Results are checked by the
tests, not here.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

KERNELS = Path(__file__).resolve().parents[1] / "kernels"
HALVES = (torch.bfloat16, torch.float16)
DEVICE = "cuda"
# Rows of a multiple of 16 bytes, and rows that no wide load may touch.
WIDTHS = (96, 33)


def names() -> set[str]:
    """The kernels that the sources define."""
    cuda = "".join(path.read_text() for path in sorted((KERNELS / "cuda").glob("*.cu")))
    triton = "".join(path.read_text() for path in sorted((KERNELS / "triton").glob("*.py")))
    return set(re.findall(r"__global__ void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(", cuda)) | set(
        re.findall(r"^def (\w+_kernel)\(", triton, flags=re.M)
    )


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype)


def entries(n: int, k: int, F: int) -> tuple[Tensor, Tensor, Tensor]:
    """indptr, indices and values of n rows of k entries."""
    ids = torch.rand(n, F, device=DEVICE).argsort(dim=1)[:, :k].sort(dim=1).values.int()
    return torch.arange(n + 1, device=DEVICE) * k, ids.flatten(), random(n * k)


def select() -> None:
    from pullback.ops import cuda

    for dtype, F in product((torch.float32, *HALVES), (64, 1536, 5001)):
        h = random(5, F, dtype=dtype)
        maxima = torch.nn.functional.pad(h, (0, -F % 64), value=-torch.inf).unflatten(1, (-1, 64)).amax(2)
        cuda.topk_select(h, 9, True)
        cuda.topk_select_tiles(h, maxima, min(9, maxima.shape[1]), False)
        values, indices = cuda.topk_select(h[:, : F // 2], 9, False)
        cuda.select_running(h[:, F // 2 :], F // 2, values, indices, relu=True)
        cuda.topk_select(torch.zeros_like(h), 40, True)  # more ties than candidates find room
        cuda.threshold_select(h, random(F))
        cuda.threshold_select(h, capacity=7)


def decode() -> None:
    from pullback.ops import cuda, triton

    indptr, indices, values = entries(6, 11, 70)
    for dtype, d in product((torch.float32, torch.float64, *HALVES), WIDTHS):
        wide = torch.promote_types(dtype, torch.float32)
        W, b = random(70, d, dtype=dtype), random(d, dtype=wide)
        for backend in (cuda, triton):
            backend.decode_csr(indptr, indices, values.to(wide), W, b)
        triton.sampled_dot(random(6, d, dtype=dtype), W, indptr, indices)
        triton.contract(random(3, 6, d, dtype=dtype), indptr, indices, values.to(wide), W)


def train() -> None:
    from pullback.ops import cuda, triton
    from pullback.ops.gradient import DictionaryParams, SparseGradient

    n, k, F = 80, 20, 40
    _, ids, values = entries(n, k, F)
    ids[:900] = 3  # a feature of several chunks
    rows = torch.arange(n, device=DEVICE, dtype=torch.int32).repeat_interleave(k, output_size=n * k)
    starts, order = cuda.feature_order(ids, F)
    number = torch.ones((), dtype=torch.float64, device=DEVICE)
    for dtype, d in product((torch.float32, torch.bfloat16), WIDTHS):
        W, y = random(F, d, dtype=dtype), random(n, d)
        cuda.decode_residual(values.view(n, k), ids.view(n, k), W, None, y, True)
        triton.column_moments(y, random(d, dtype=torch.float64))
        grad = SparseGradient(starts, order, rows, values, values, y.to(dtype), y.to(dtype))
        for enough in (None, 0 * number, 1e30 * number):
            cuda.gradient_norm(grad, W, True, enough)
        state = [DictionaryParams(random(F, d, dtype=t), random(F, dtype=t), random(F, d, dtype=t).abs())
                 for t in (dtype, torch.float32, torch.float32)]  # fmt: skip
        for parallel, unit, lazy in product((False, True), repeat=3):
            switches = dict(betas=(0.9, 0.99), eps=1e-8, remove_parallel=parallel, unit_norm=unit, lazy=lazy)
            cuda.adam_(grad, *state, number, 1e-3, 3, **switches)


def encode() -> None:
    from pullback.ops import triton
    from pullback.ops.gpu import encoder, table

    before = table.plan
    try:
        for dtype, d, way in product((torch.float32, *HALVES), WIDTHS, ("chunks", "tiles")):
            plan = table.Plan(way, rows=16, features=5000)
            table.plan = lambda *_, plan=plan: plan
            x, W, b = random(40, d, dtype=dtype), random(9000, d, dtype=dtype), random(9000)
            encoder.topk_encode(x, W, b, 10, True)
            encoder.topk_encode(x[:2], W[:1].expand(900, -1).contiguous(), b[:900] * 1e-4, 10, True)  # all compete
    finally:
        table.plan = before
    half = random(70, 96, dtype=torch.float16)
    h = half.new_empty(70, 999)
    triton.encode_gemm(half, random(999, 96, dtype=torch.float16), random(999), h, half.new_empty(70, 16))


def step() -> None:
    from pullback.training import TrainStep

    steps = TrainStep(96, 96, 2048, k=16, device=DEVICE, dead_feature_window=100)
    for _ in range(4):
        x = random(64, 96)
        steps(x, x)
    steps.check()


PARTS: tuple[Callable[[], None], ...] = (select, decode, train, encode, step)


def run() -> None:
    torch.manual_seed(0)
    for part in PARTS:
        part()
        torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", action="store_true", help="say which kernels ran")
    if not parser.parse_args().names:
        run()
        return 0
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
    seen = {event.key for event in profile.key_averages()}
    missing = [name for name in sorted(names()) if not any(re.search(rf"\b{name}\b", key) for key in seen)]
    print(f"{len(names())} kernels, not run: {', '.join(missing) or 'none'}")
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
