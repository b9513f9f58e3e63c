"""Sparse decode on one GPU: each backend and torch's embedding_bag, checked first, then timed.

    python bench/decode_gpu.py [--rows 8192] [--out FILE]      one JSON object a line

``floor_ms`` is the time to move the compulsory bytes (entries, output, and each decoder row that is used at all, once)
at the bandwidth of a device-to-device copy measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from importlib import metadata
from typing import Any

import torch
import triton
import triton.testing
from torch import Tensor

from pullback.ops import dispatch

# (d, F, k): GPT-2 small, Gemma-2-2b.
SHAPES = [(768, 24576, 32), (2304, 131072, 64)]


def copy_bandwidth() -> float:
    """Bytes per ms of a large device-to-device copy, reads and writes counted."""
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / triton.testing.do_bench(lambda: target.copy_(source))


def providers() -> dict[str, Callable[..., Tensor]]:
    """Every way to decode that runs here."""

    def embedding_bag(indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor) -> Tensor:
        return torch.nn.functional.embedding_bag(
            indices, W_dec, indptr, mode="sum", per_sample_weights=values, include_last_offset=True
        )

    found: dict[str, Callable[..., Tensor]] = {"embedding_bag": embedding_bag}
    for name in ("triton", "cuda"):
        if name in dispatch.available_backends():
            with dispatch.use_backend(name):
                found[name] = dispatch.lookup("decode_csr", torch.device("cuda"))
    return found


def measure(rows: int, d: int, F: int, k: int, dtype: torch.dtype, bandwidth: float) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    ids = torch.rand(rows, F, device="cuda").topk(k, sorted=False).indices.sort().values.int().reshape(-1)
    indptr = torch.arange(0, rows * k + 1, k, device="cuda")
    values = torch.rand(rows * k, device="cuda").to(dtype)
    W_dec = torch.randn(F, d, device="cuda").to(dtype)
    some = slice(0, min(rows, 64) * k)
    terms = values[some, None].double() * W_dec[ids[some].long()].double()
    expected, magnitude = (t.view(-1, k, d).sum(1) for t in (terms, terms.abs()))

    used = ids.unique().numel()
    size = W_dec.element_size()
    floor = (rows * k * (4 + size) + indptr.nbytes + rows * d * size + used * d * size) / bandwidth
    result = []
    for name, decode in providers().items():
        pointers = indptr.int() if name == "embedding_bag" else indptr  # torch wants one index type
        out = decode(pointers, ids, values, W_dec)[: len(expected)]
        # bfloat16: the result is rounded once, and embedding_bag is free to round more often.
        allowed = (k + 2) * torch.finfo(torch.float32).eps * magnitude + torch.finfo(dtype).eps * expected.abs()
        worst = float(((out.double() - expected).abs() / allowed).max())
        if worst > 1 and name != "embedding_bag":
            raise SystemExit(f"{name} is wrong: d={d} F={F} k={k} {dtype}, {worst:.1f} times the error bound")
        run = partial(decode, pointers, ids, values, W_dec)
        median, low, high = triton.testing.do_bench(run, quantiles=[0.5, 0.2, 0.8])
        result.append(
            {"op": "decode_csr", "provider": name, "rows": rows, "d": d, "F": F, "k": k, "dtype": str(dtype)[6:]}
            | {"ms": median, "ms_20": low, "ms_80": high, "floor_ms": floor, "error_over_bound": worst}
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--out", default=None, help="append to this file instead of printing only")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench: no CUDA device")

    bandwidth = copy_bandwidth()
    machine = {
        "gpu": torch.cuda.get_device_name(),
        "copy_GBps": bandwidth / 1e6,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "pullback": metadata.version("pullback"),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    for d, F, k in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            for row in measure(arguments.rows, d, F, k, dtype, bandwidth):
                line = json.dumps(machine | row)
                print(line, flush=True)
                if arguments.out:
                    with open(arguments.out, "a") as file:
                        file.write(line + "\n")


if __name__ == "__main__":
    main()
