"""Results that nobody measured, for tests of what is done with results."""

from __future__ import annotations

from typing import Any

RUN: dict[str, Any] = {
    "kind": "run",
    "schema": 1,
    "suite": "peers",
    "machine": "made-up",
    "device": "cpu",
    "gpu": None,
    "cpu": "Made Up (1/2), avx2",
    "cores": 2,
    "threads": 2,
    "omp_wait_policy": "default",
    "cuda": None,
    "python": "3.11.0",
    "versions": {"torch": "2.13.0", "triton": None},
    "revision": "abc",
    "time": "2026-01-02T03:04:05+00:00",
    "load": 0.1,
    "ceilings": {"gemm_fp32": 100.0, "gemm_bf16": 200.0, "stream": 20.0},
}


def timed(provider: str, ms: float, **how: Any) -> dict[str, Any]:
    """A row with status "ok"."""
    row: dict[str, Any] = {"kind": "row", "op": "decode", "label": "A", "shape": {"N": 2, "d": 3, "F": 4, "k": 1}}
    row |= {"dtype": "float32", "data": "normal", "provider": provider, "role": "op", "status": "ok", "reason": ""}
    row |= {"ms": ms, "ms_20": 0.9 * ms, "ms_80": 1.2 * ms, "ms_best": 0.8 * ms, "cpu_ms": ms, "rounds": 5}
    row |= {"floor_ms": 1.0, "fraction_of_floor": 1 / ms, "peak_mb": None, "error": 0.1, "notes": {}}
    return row | {"load": 0.1, "others": 0.0, "disturbed": False} | how


def step(provider: str, ms: float, **how: Any) -> dict[str, Any]:
    notes = {"tokens_per_s": 2000 / ms, "fvu_first": 1.0, "fvu_last": 0.5, "steps": 5.0}
    return timed(provider, ms, **({"op": "step", "peak_mb": 100.0, "notes": notes} | how))


def absent(provider: str, reason: str) -> dict[str, Any]:
    row = timed(provider, 1.0)
    kept = ("kind", "op", "label", "shape", "dtype", "data", "provider", "role")
    return {name: row[name] for name in kept} | {"status": "absent", "reason": reason}
