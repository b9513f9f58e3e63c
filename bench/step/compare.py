"""Compare training steps: a process for each implementation (its peak memory is its own), one step of each in turn."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

from bench import data, environment, measure, roofline
from bench.environment import ROOT
from bench.run import Say, Settings, line

from .implementations import IMPLEMENTATIONS, Implementation

# (shape, label, suites)
CASES: tuple[tuple[dict[str, int], str, tuple[str, ...]], ...] = (
    (data.TINY, "tiny", ("tiny",)),
    (data.SMALL, "A", ("quick", "full")),
    (data.WIDE, "B", ("full",)),
    (data.GPT2, "GPT-2 small", ("gpu",)),
    (data.GEMMA, "Gemma-2-2b", ("gpu",)),
)
ROUNDS = {"tiny": 3, "quick": 5, "full": 9, "gpu": 15}
WARM_UP = 2


class Worker:
    """A process that takes training steps when it is told to."""

    def __init__(self, one: Implementation, shape: dict[str, int], device: str, threads: int) -> None:
        self.timing = measure.Timing()
        self.losses: list[float] = []
        self.cpu_seconds = 0.0
        self.process: subprocess.Popen[str] | None = None
        if one.needs and importlib.util.find_spec(one.needs) is None:
            self.answered: dict[str, Any] = {"status": "absent", "reason": f"{one.needs} is not there"}
            return
        command = [sys.executable, "-m", "bench.step.worker", one.name, json.dumps(shape), device, str(threads)]
        # The same threads for each, and whatever OpenMP policy we run under ourselves.
        environ = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env=environ,
        )
        self.answered = {"status": "starting", "reason": ""}

    def wait(self) -> None:
        """Until the process has its step built, or cannot build it."""
        if self.answered["status"] == "starting":
            self.answered = self._answer()

    @property
    def ready(self) -> bool:
        return self.answered.get("status") == "ready"

    def steps(self, count: int, *, timed: bool) -> None:
        """Take steps; after one that failed, none."""
        got = self._ask(f"steps {count}")
        if "wall" not in got:
            self.answered = got
            return
        self.losses += got["loss"]
        self.cpu_seconds += sum(got["cpu"]) / 1e3
        if timed:
            self.timing.wall += got["wall"]
            self.timing.cpu += got["cpu"]

    def stop(self) -> float | None:
        """End the process; MiB that training took."""
        peak = self._ask("stop").get("peak_mb") if self.ready else None
        self.close()
        return peak

    def close(self) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def _ask(self, order: str) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # the answer says why
            self.process.stdin.write(order + "\n")
            self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        text = self.process.stdout.readline()
        if text:
            return json.loads(text)
        return {"status": "failed", "reason": f"the process ended with code {self.process.wait()}"}


def run(suite: str, settings: Settings, rounds: int | None, say: Say) -> Iterator[list[dict[str, Any]]]:
    """The rows of all training steps of a suite, those that were timed side by side together."""
    for shape, label, suites in CASES:
        if suite in suites:
            say(f"\nstep  {label}: " + " ".join(f"{name}={value}" for name, value in shape.items()))
            yield from compare(shape, label, suite, settings, rounds or ROUNDS[suite], say)


def compare(
    shape: dict[str, int], label: str, suite: str, settings: Settings, rounds: int, say: Say
) -> Iterator[list[dict[str, Any]]]:
    device = settings.device.type
    chosen = [one for one in IMPLEMENTATIONS.values() if device in one.devices and suite in one.suites]
    # Side by side they would not fit one GPU, and a GPU that nobody shares does not need turns.
    groups = [[one] for one in chosen] if device == "cuda" else [chosen]
    return (_side_by_side(group, shape, label, settings, rounds, say) for group in groups)


def _side_by_side(
    group: list[Implementation],
    shape: dict[str, int],
    label: str,
    settings: Settings,
    rounds: int,
    say: Say,
) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        workers = {}
        for one in group:
            workers[one.name] = Worker(one, shape, settings.device.type, settings.threads)
            stack.callback(workers[one.name].close)
        for worker in workers.values():
            worker.wait()
            if worker.ready:
                worker.steps(WARM_UP, timed=False)
        neighbours, load = environment.Neighbours(), os.getloadavg()[0]
        before = sum(worker.cpu_seconds for worker in workers.values())
        for _ in range(rounds):
            for worker in workers.values():
                if worker.ready:
                    worker.steps(1, timed=True)
        others = neighbours.cores(sum(worker.cpu_seconds for worker in workers.values()) - before)
        rows = []
        for one in group:
            rows.append(_row(one, workers[one.name], shape, label, settings, load, others))
            say(line(rows[-1]) if rows[-1]["status"] == "ok" else f"  {one.name:24s} {rows[-1]['reason']}")
        return rows


def _row(
    one: Implementation,
    worker: Worker,
    shape: dict[str, int],
    label: str,
    settings: Settings,
    load: float,
    others: float,
) -> dict[str, Any]:
    about = {"kind": "row", "op": "step", "label": label, "shape": dict(shape), "dtype": "float32", "data": "normal"}
    about |= {"provider": one.name, "role": one.role}
    peak = worker.stop()
    if not worker.ready:
        return about | {key: worker.answered[key] for key in ("status", "reason")}
    first, last = worker.losses[0], worker.losses[-1]
    # Libraries start from weights of their own, so that the check is that the step learns.
    if one.role == "op" and not last < first:
        return about | {"status": "refused", "reason": f"does not learn: FVU {first:.4f}, then {last:.4f}"}
    times = worker.timing.summary()
    floor = roofline.floor_ms("step", shape, "float32", settings.ceilings)
    notes = {"tokens_per_s": shape["N"] / times["ms"] * 1e3}
    if one.role == "op":
        notes |= {"fvu_first": first, "fvu_last": last, "steps": float(len(worker.losses))}
    return (
        about
        | {"status": "ok", "reason": ""}
        | times
        | {"floor_ms": floor, "fraction_of_floor": floor / times["ms"], "peak_mb": peak, "error": None}
        | {"notes": notes, "load": load, "others": others}
        | {"disturbed": settings.disturbed(others)}
    )
