"""Clocks. The providers of one case are timed in turns, so that their ratios hold on a machine that is never quite
still: a slow second costs each of them one sample, not one of them all of its samples.

CPU: wall time, and CPU time over all threads. GPU: events around one call, with the L2 cache overwritten before it.
"""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from .registry import Run

SHORTEST_CPU_SAMPLE = 2e-3  # seconds; shorter calls are repeated within a sample
L2_BYTES = 256 * 2**20


@dataclass
class Timing:
    """Samples of one provider, milliseconds a call."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Median, the 20th and 80th percentile, the best, median CPU time, and how many samples."""
        return {
            "ms": statistics.median(self.wall),
            "ms_20": percentile(self.wall, 0.2),
            "ms_80": percentile(self.wall, 0.8),
            "ms_best": min(self.wall),
            "cpu_ms": statistics.median(self.cpu) if self.cpu else None,
            "rounds": len(self.wall),
        }


def percentile(samples: Sequence[float], share: float) -> float:
    """The sample below which `share` of them lie, interpolated."""
    if not samples:
        raise ValueError("percentile: no samples")
    ordered = sorted(samples)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def interleave(
    runs: Mapping[str, Run], device: torch.device, budget: float = 2.0, fewest: int = 5, most: int = 50
) -> dict[str, Timing]:
    """Time every run in rounds for about `budget` seconds: `fewest` to `most` rounds, each starting with another run.

    Every run must have been called once already.
    """
    if not 1 <= fewest <= most:
        raise ValueError(f"interleave: need 1 <= fewest <= most, got {fewest} and {most}")
    timings = {name: Timing() for name in runs}
    if not runs:
        return timings
    sample = _gpu_sampler(device) if device.type == "cuda" else _cpu_sample
    repeats, spent = {}, 0.0
    for name, run in runs.items():  # warm up, and see how long one takes
        once = sample(run, 1)[0] / 1e3
        repeats[name] = 1 if device.type == "cuda" else max(1, math.ceil(SHORTEST_CPU_SAMPLE / max(once, 1e-7)))
        spent += once * repeats[name]
    rounds = max(fewest, min(most, int(budget / max(spent, 1e-6))))
    names = list(runs)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            wall, cpu = sample(runs[name], repeats[name])
            timings[name].wall.append(wall)
            if cpu is not None:
                timings[name].cpu.append(cpu)
    return timings


def _cpu_sample(run: Run, repeats: int) -> tuple[float, float | None]:
    """(wall, CPU) milliseconds a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - wall) * 1e3 / repeats, (time.process_time() - cpu) * 1e3 / repeats


def _gpu_sampler(device: torch.device) -> Any:
    flush = torch.empty(L2_BYTES, dtype=torch.int8, device=device)
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def sample(run: Run, repeats: int) -> tuple[float, float | None]:
        total = 0.0
        for _ in range(repeats):
            flush.zero_()  # also gives the host a head start over the device
            start.record()
            run()
            stop.record()
            stop.synchronize()
            total += start.elapsed_time(stop)
        return total / repeats, None

    return sample


@contextmanager
def poisoned() -> Iterator[None]:
    """Inside, memory that torch allocates and nobody writes is NaN, and the largest value in integers: an entry that a
    provider leaves out cannot be right by luck."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


def gpu_peak(run: Run, device: torch.device) -> tuple[Any, float]:
    """(result, MiB that the run allocated on top of what was there)."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = run()
    torch.cuda.synchronize(device)
    return result, (torch.cuda.max_memory_allocated(device) - before) / 2**20
