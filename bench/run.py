"""Run the cases of a suite: prepare, check against float64, time in turns, and say of every provider what came out."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from . import environment, measure, roofline
from .registry import Absent, Case, Op, Provider, Run, Verdict

Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How long to look, and where.

    Attributes:
        budget: seconds of timing a case.
        fewest, most: rounds.
        compiled: run the optional providers, torch.compile, as well.
        threads: CPU threads an op may use.
    """

    device: torch.device
    ceilings: roofline.Ceilings
    budget: float = 2.0
    fewest: int = 5
    most: int = 50
    compiled: bool = False
    threads: int = 1

    def disturbed(self, others: float) -> bool:
        """Whether `others`, cores that other processes took, were taken from us: on a GPU we use one."""
        wanted = 1 if self.device.type == "cuda" else self.threads
        return others > environment.cores() - wanted + 0.5


def run_op(op: Op, suite: str, settings: Settings, say: Say) -> Iterator[dict[str, Any]]:
    """The rows of all cases of one op."""
    for case in op.cases_of(suite):
        say(f"\n{op.name}  {case.name}")
        yield from run_case(op, case, settings, say)


def run_case(op: Op, case: Case, settings: Settings, say: Say) -> list[dict[str, Any]]:
    """One row for every provider: times of those that are right, reasons of the others."""
    device = settings.device
    neighbours, load = environment.Neighbours(), os.getloadavg()[0]
    inputs = op.inputs(case, device, torch.Generator(device).manual_seed(0))
    expected = op.reference(inputs)
    rows, runs, facts = [], {}, {}
    for provider in op.providers:
        if device.type not in provider.devices or (provider.optional and not settings.compiled):
            continue
        about = _about(op, case, provider)
        try:
            run = provider.prepare(inputs)
            verdict, peak = _verify(op, provider, inputs, expected, run, device)
        except Absent as missing:
            rows.append(about | {"status": "absent", "reason": environment.without_paths(str(missing))})
        except torch.OutOfMemoryError:
            rows.append(about | {"status": "absent", "reason": "runs out of memory at this shape"})
            torch.cuda.empty_cache()
        except Exception as error:
            rows.append(
                about | {"status": "failed", "reason": environment.without_paths(f"{type(error).__name__}: {error}")}
            )
        else:
            if verdict.passed:
                runs[provider.name], facts[provider.name] = run, (about, verdict, peak)
            else:
                reason = f"wrong: {verdict.error:.3g} times the error bound"
                rows.append(about | {"status": "refused", "reason": reason})
        if rows and rows[-1]["provider"] == provider.name:
            say(f"  {provider.name:24s} {rows[-1]['status']}: {rows[-1]['reason']}")

    timings = measure.interleave(runs, device, settings.budget, settings.fewest, settings.most)
    others = neighbours.cores()
    floor = roofline.floor_ms(op.name, case.shape, case.dtype, settings.ceilings)
    for name, timing in timings.items():
        about, verdict, peak = facts[name]
        times = timing.summary()
        rows.append(
            about
            | {"status": "ok", "reason": ""}
            | times
            | {"floor_ms": floor, "fraction_of_floor": floor / times["ms"], "peak_mb": peak}
            | {"error": None if about["role"] == "floor" else verdict.error, "notes": dict(verdict.notes)}
            | {"load": load, "others": others, "disturbed": settings.disturbed(others)}
        )
        say(line(rows[-1]))
    del runs, facts, inputs, expected
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return rows


def line(row: dict[str, Any]) -> str:
    """One timed row as it is printed."""
    cpu = "" if row["cpu_ms"] is None else f"  cpu {row['cpu_ms']:9.3f}"
    memory = "" if row["peak_mb"] is None else f"  {row['peak_mb']:8.1f} MiB"
    flag = f"  DISTURBED: {row['others']} cores to others" if row["disturbed"] else ""
    return (
        f"  {row['provider']:24s} {row['ms']:10.3f} ms [{row['ms_20']:.3f} .. {row['ms_80']:.3f}]{cpu}"
        f"  {100 * row['fraction_of_floor']:5.1f} % of the floor{memory}{flag}"
    )


def _about(op: Op, case: Case, provider: Provider) -> dict[str, Any]:
    return {
        "kind": "row",
        "op": op.name,
        "label": case.label,
        "shape": dict(case.shape),
        "dtype": case.dtype,
        "data": case.data,
        "provider": provider.name,
        "role": provider.role,
    }


def _verify(
    op: Op, provider: Provider, inputs: Any, expected: Any, run: Run, device: torch.device
) -> tuple[Verdict, float | None]:
    """Whether the provider's output is right, and the GPU memory it took."""
    peak = None
    with measure.poisoned():
        output = run()
    verdict = Verdict(0.0) if provider.role == "floor" else op.check(inputs, expected, output)
    del output
    if device.type == "cuda":
        _, peak = measure.gpu_peak(run, device)
    return verdict, peak


def say_nothing(_: str) -> None:
    """For tests."""


def say_on_stderr(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
