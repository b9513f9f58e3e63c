"""The contraction of attribution on one CPU core: checked first, then timed beside torch's ways to write it.

    OMP_NUM_THREADS=1 python bench/contract_cpu.py [--out FILE]      one JSON object a line

Times are CPU time of the thread, best of several. ``floor_ms`` is the larger of FLOPs at the rate of torch's 2048^3
sgemm and compulsory bytes (gradients, used decoder rows, result) at the bandwidth of a large copy, both of this run.
The gathers and copies that a way of writing it needs are counted.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pullback import ops
from pullback.ops import SparseActivations, reference

# (targets, positions, d, k, F): GPT-2 small, Gemma-2-2b, many targets.
SHAPES = [
    (16, 64, 768, 32, 24_576),
    (64, 64, 768, 32, 24_576),
    (32, 64, 2304, 64, 16_384),
    (256, 32, 768, 32, 24_576),
]


def seconds(run: Callable[[], object], repeats: int = 5, at_least: float = 0.15) -> float:
    """Best CPU time of one call, over batches of calls that last at least `at_least`."""
    run()
    best = float("inf")
    for _ in range(repeats):
        calls, start = 0, time.thread_time()
        while (elapsed := time.thread_time() - start) < at_least:
            run()
            calls += 1
        best = min(best, elapsed / calls)
    return best


def machine() -> tuple[float, float]:
    """FLOP/s of a large sgemm, and bytes/s of a large copy, reads and writes counted."""
    a, b, c = (torch.randn(2048, 2048) for _ in range(3))
    source = torch.randn(2**26)
    target = torch.empty_like(source)
    flops = 2 * 2048**3 / seconds(lambda: torch.mm(a, b, out=c))
    return flops, 2 * source.nbytes / seconds(lambda: target.copy_(source))


def ways(G: Tensor, acts: SparseActivations, W: Tensor) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Every way to compute (B, nnz) edges from G (B, P, d); k entries at every position."""
    P, rows, ids, z = acts.n_rows, acts.rows(), acts.indices.long(), acts.values
    k = acts.nnz // P
    by_position = G.transpose(0, 1).contiguous()
    halves = G.bfloat16(), W.bfloat16()

    def bmm() -> Tensor:
        return torch.bmm(by_position, W[ids].view(P, k, -1).transpose(1, 2)).transpose(0, 1).reshape(len(G), -1) * z

    yield "pullback", lambda: ops.contract(G, acts, W)
    yield "pullback, G by position", lambda: ops.contract(by_position.transpose(0, 1), acts, W)
    yield "pullback, W bfloat16", lambda: ops.contract(G, acts, halves[1])
    yield "pullback, G and W bfloat16", lambda: ops.contract(halves[0], acts, halves[1])
    yield "einsum", lambda: torch.einsum("bed,ed->be", G[:, rows], W[ids]) * z
    yield "gather + bmm", bmm
    if hasattr(torch.nn.functional, "grouped_mm"):
        ends, right = acts.indptr[1:].int(), by_position.transpose(1, 2)
        yield "grouped_mm", lambda: torch.nn.functional.grouped_mm(W[ids], right, offs=ends).T * z


def measure(B: int, P: int, d: int, k: int, F: int, flops: float, bandwidth: float) -> Iterator[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    W, G = torch.randn(F, d, generator=generator), torch.randn(B, P, d, generator=generator)
    ids = torch.stack([torch.randperm(F, generator=generator)[:k].sort().values for _ in range(P)])
    acts = SparseActivations.from_topk(torch.rand(P, k, generator=generator) + 0.1, ids.int(), F)
    few = slice(0, 2)
    exact = reference.contract(G[few].double(), acts.indptr, acts.indices, acts.values.double(), W.double())
    work = 2 * B * acts.nnz * d
    for name, run in ways(G, acts, W):
        error = float((run()[few].double() - exact).abs().max() / exact.abs().max())
        if error > (2e-2 if "bfloat16" in name else 1e-5):
            raise AssertionError(f"{name} is off by {error:.1e} of the largest edge")
        width = 2 if "G and W" in name else 4, 2 if "bfloat16" in name else 4
        bytes_moved = width[0] * G.numel() + width[1] * acts.indices.unique().numel() * d + 4 * B * acts.nnz
        took = seconds(run, at_least=0.05 if name == "einsum" else 0.15)
        floor = max(work / flops, bytes_moved / bandwidth)
        yield {
            "shape": {"B": B, "P": P, "d": d, "k": k, "F": F},
            "way": name,
            "ms": round(took * 1e3, 4),
            "floor_ms": round(floor * 1e3, 4),
            "of_floor": round(floor / took, 3),
            "of_sgemm": round(work / took / flops, 3),
            "error": error,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="append the lines to this file too")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    flops, bandwidth = machine()
    lines = [
        {"isa": ops.isa(), "torch": torch.__version__, "sgemm_gflops": flops / 1e9, "copy_gbytes": bandwidth / 1e9}
    ]
    print(json.dumps(lines[0]), flush=True)
    for shape in SHAPES:
        for line in measure(*shape, flops, bandwidth):
            print(json.dumps(line), flush=True)
            lines.append(line)
    if out:
        with open(out, "a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)


if __name__ == "__main__":
    main()
