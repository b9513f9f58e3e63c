"""Where a training step on a GPU spends its time: kernel by kernel, and how much of it the host holds up.

python -m bench.step.kernels [--shapes A B] [--steps 10]
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

from bench import data
from bench.step.worker import batches
from pullback.training import TrainStep

SHAPES = {"A": data.GPT2, "B": data.GEMMA}
SHOWN = 30


def spent(step: TrainStep, x: torch.Tensor, y: torch.Tensor, steps: int) -> tuple[float, float]:
    """Milliseconds a step takes, and those that the host needs to queue it."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step(x, y)
    queued = time.perf_counter()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start) / steps, 1e3 * (queued - start) / steps


def report(name: str, steps: int) -> None:
    shape = SHAPES[name]
    step = TrainStep(shape["d"], shape["d"], shape["F"], k=shape["k"], device="cuda")
    ((x, y),) = batches(shape, torch.device("cuda"))[:1]
    for _ in range(3):
        step(x, y)
    took, queued = spent(step, x, y, steps)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(steps):
            step(x, y)
        torch.cuda.synchronize()
    events = [event for event in profile.key_averages() if event.self_device_time_total > 0]
    busy = sum(event.self_device_time_total for event in events) / steps / 1e3
    launches = sum(event.count for event in events) / steps
    print(f"{name}: {took:.3f} ms a step, {queued:.3f} to queue it, {busy:.3f} in {launches:.0f} kernels and copies")
    for event in sorted(events, key=lambda event: -event.self_device_time_total)[:SHOWN]:
        ms, count = event.self_device_time_total / steps / 1e3, event.count / steps
        print(f"  {ms:8.3f} ms  {100 * ms / busy:5.1f} %  {count:6.1f} x  {event.key[:110]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("kernels: no CUDA device")
    for name in arguments.shapes:
        report(name, arguments.steps)


if __name__ == "__main__":
    main()
