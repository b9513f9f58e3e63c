"""Which way to encode on this GPU: times both ways of `pullback.ops.gpu.table` and writes the table.

    python bench/tune_encoder.py [--rows 8192] [--shapes 768x24576x32 ...] [--dtypes bfloat16 ...] [--write [TABLE]]

For each shape and dtype: the 16-bit GEMM alone (the floor), "chunks" over a few block sizes, "tiles" over a few tiles
of the GEMM, all checked against float64 on some rows first. Prints one JSON object a line; with --write, the best plan
of each shape replaces this architecture's entries of python/pullback/ops/gpu/table.json in this checkout, or the table
goes to another file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
import triton.testing

from pullback.kernels.triton import ENCODE_TILES
from pullback.ops import dispatch, reference
from pullback.ops.gpu import encoder as gpu_encoder
from pullback.ops.gpu import table as gpu_table
from pullback.ops.gpu.table import Plan

TABLE = Path(__file__).resolve().parents[1] / "python/pullback/ops/gpu/table.json"

# (d, F, k): GPT-2 small, Gemma-2-2b, and a million features.
SHAPES = [(768, 24576, 32), (2304, 131072, 64), (2304, 1 << 20, 64)]
BLOCKS = [(1024, 8192), (2048, 4096), (2048, 8192), (2048, 16384), (4096, 8192)]


def plans() -> Iterator[Plan]:
    for rows, features in BLOCKS:
        yield Plan("chunks", rows, features)
    for tile in ENCODE_TILES:
        yield Plan("tiles", 8192, 0, tuple(tile.items()))


def use(plan: Plan) -> None:
    """Make the encoder follow `plan` whatever the table says."""
    gpu_table.plan = lambda *_: plan


def gemm_ms(x: torch.Tensor, W: torch.Tensor) -> float:
    """The 16-bit GEMM alone, into memory that is there."""
    if x.dtype == torch.float32:
        x, W = x.bfloat16(), W.bfloat16()
    out = x.new_empty(len(x), len(W))
    return triton.testing.do_bench(lambda: torch.mm(x, W.T, out=out), return_mode="median")


def measure(rows: int, d: int, F: int, k: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    x, W = (torch.randn(size, d, device="cuda").to(dtype) for size in (rows, F))
    b = 0.1 * torch.randn(F, device="cuda").to(dtype)
    expected = reference.topk_encode(x[:8], W, b, k, True)
    some = x[: max(256, min(rows, 2**30 // F))]
    floor = gemm_ms(some, W) * rows / len(some)
    result = []
    for plan in plans():
        use(plan)
        row = {"op": "topk_encode", "rows": rows, "d": d, "F": F, "k": k, "dtype": str(dtype)[6:], "gemm_ms": floor}
        row |= {"way": plan.way, "block": [plan.rows, plan.features], "tile": dict(plan.tile) if plan.tile else None}
        before = int(gpu_encoder.uncertain_rows(x.device))
        try:
            got = gpu_encoder.topk_encode(x, W, b, k, True)
            torch.cuda.synchronize()
        except Exception as error:  # one plan that does not run here says nothing of the others
            result.append(row | {"error": f"{type(error).__name__}: {error}"[:300]})
            continue
        row["uncertain_rows"] = int(gpu_encoder.uncertain_rows(x.device)) - before
        if not all(torch.equal(mine[:8], theirs) for mine, theirs in zip(got, expected, strict=True)):
            result.append(row | {"error": "wrong"})
            continue
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        median, low, high = triton.testing.do_bench(
            lambda: gpu_encoder.topk_encode(x, W, b, k, True), quantiles=[0.5, 0.2, 0.8]
        )
        peak = torch.cuda.max_memory_allocated() - held
        result.append(row | {"ms": median, "ms_20": low, "ms_80": high, "peak_MiB": peak / 2**20})
    return result


def entry(arch: str, best: dict[str, Any]) -> dict[str, Any]:
    """The table's entry for the fastest plan of a shape."""
    rows, features = best["block"]
    chosen = {"way": best["way"], "rows": rows, "features": features or best["F"], "tile": best["tile"]}
    return {"arch": arch, "dtype": best["dtype"], "d": best["d"], "F": best["F"]} | chosen | {"measured": True}


def write(path: Path, arch: str, entries: list[dict[str, Any]]) -> None:
    """The table with these entries of `arch` in place of its own, one a line."""
    measured = {(e["dtype"], e["d"], e["F"]) for e in entries}
    kept = [e for e in gpu_table.table() if e["arch"] != arch or (e["dtype"], e["d"], e["F"]) not in measured]
    lines = sorted(json.dumps(e) for e in kept + entries)
    path.write_text("[\n  " + ",\n  ".join(lines) + "\n]\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--shapes", nargs="+", default=None, help="as 768x24576x32 (d, F, k)")
    parser.add_argument(
        "--write", type=Path, nargs="?", const=TABLE, help="write the table with the winners; default: of this checkout"
    )
    parser.add_argument("--out", default=None, help="append the measurements to this file")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("tune: no CUDA device")
    shapes = [tuple(map(int, s.split("x"))) for s in arguments.shapes] if arguments.shapes else SHAPES

    device = torch.device("cuda")
    major, minor = torch.cuda.get_device_capability()
    arch = f"sm_{10 * major + minor}"
    machine = {"gpu": torch.cuda.get_device_name(), "arch": arch, "torch": torch.__version__}
    machine["triton"] = triton.__version__
    machine["select"] = dispatch.lookup("topk_select", device).__module__
    winners, wrong = [], False
    for d, F, k in shapes:
        for name in arguments.dtypes:
            timed = measure(arguments.rows, d, F, k, getattr(torch, name))
            for row in timed:
                wrong |= row.get("error") == "wrong"
                line = json.dumps(machine | row)
                print(line, flush=True)
                if arguments.out:
                    with open(arguments.out, "a") as file:
                        file.write(line + "\n")
            winners.append(entry(arch, min((row for row in timed if "ms" in row), key=lambda row: row["ms"])))
            if arguments.write:
                write(arguments.write, arch, winners)
    print(json.dumps(winners, indent=2))
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
