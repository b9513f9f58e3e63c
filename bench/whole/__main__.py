"""`python -m bench.whole`: whole training runs of each library in turns, each in a process of its own, and what
recording activations costs."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from bench import environment, measure, roofline, rows, run
from bench.environment import ROOT
from bench.whole import cases, harvest
from bench.whole.cases import Case
from bench.whole.trainers import PACKAGES


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.whole", description=__doc__)
    add = parser.add_argument
    add("--smoke", action="store_const", const="smoke", default="whole", dest="suite", help="too small to mean much")
    add("--cases", nargs="+", metavar="CASE", help="only these: tiny-mix, GPT-2 small")
    add("--threads", type=int, default=environment.cores(), help="CPU threads of each; default: all cores")
    add("--rounds", type=int, default=None, help="runs of each library")
    add("--python", type=Path, default=ROOT / "build/bench-peers/bin/python", help="interpreter that has sparsify")
    add("--out", type=Path, default=None, help="folder of the results; default: bench/results/<machine>")
    options = parser.parse_args(arguments)
    names = [case.name for case in cases.CASES[options.suite]]
    wrong = [name for name in options.cases or [] if name not in names]
    if wrong:
        parser.error(f"no case {wrong[0]!r}; choose from {', '.join(names)}")
    if options.threads < 1 or (options.rounds is not None and options.rounds < 1):
        parser.error("--threads and --rounds must be at least 1")
    return bench(options)


def bench(options: argparse.Namespace) -> int:
    """Measure, write the file, and return 1 where something of ours failed or did not learn, else 0."""
    torch.set_num_threads(options.threads)
    smoke, device = options.suite == "smoke", torch.device("cpu")
    ceilings = roofline.measure_ceilings(device, tiny=smoke)
    settings = run.Settings(device, ceilings, 0.01 if smoke else 5.0, 1 if smoke else 5, threads=options.threads)
    # A smoke run goes where tiny runs go: into no report.
    header = {"kind": "run", "schema": rows.SCHEMA, "suite": "tiny" if smoke else "whole"}
    header |= environment.describe(device, options.threads) | {"ceilings": ceilings.as_dict()}
    folder = options.out or ROOT / "bench" / "results" / header["machine"]
    path = folder / f"{date.today().isoformat()}-whole.jsonl"
    found: list[dict[str, Any]] = []
    for case in cases.CASES[options.suite]:
        if options.cases and case.name not in options.cases:
            continue
        run.say_on_stderr(f"\n{case.name}: " + " ".join(f"{name}={value}" for name, value in case.shape.items()))
        with tempfile.TemporaryDirectory() as made:
            cases.prepare(case, Path(made))
            found += harvest.rows(Path(made), settings)
            found += trained(case, Path(made), options, settings, header["versions"])
        rows.write(path, [header, *found])
        for row in found:
            if row["label"] == case.name:
                run.say_on_stderr(f"{row['op']:8s}" + (run.line(row) if row["status"] == "ok" else _why(row)))
    print(path)
    return 1 if any(row["provider"] == "pullback" and row["status"] in ("refused", "failed") for row in found) else 0


def trained(
    case: Case, folder: Path, options: argparse.Namespace, settings: run.Settings, versions: dict[str, Any]
) -> list[dict[str, Any]]:
    """The rows of every library; what they say of their versions is added to `versions`."""
    pythons = {"pullback": Path(sys.executable), "sparsify": options.python}
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in pythons}
    neighbours, load = environment.Neighbours(), os.getloadavg()[0]
    spent = _spent_by_children()
    for turn in range(options.rounds or case.rounds):
        for name in list(pythons)[:: -1 if turn % 2 else 1]:
            if all(answer["status"] == "ok" for answer in answers[name]):
                answers[name].append(_one_run(name, pythons[name], folder, settings.threads))
    others = neighbours.cores(_spent_by_children() - spent)
    for given in answers.values():
        versions.update(given[-1].get("versions", {}))
    about = {"load": load, "others": others, "disturbed": settings.disturbed(others)}
    return [_row(case, name, given, about, settings) for name, given in answers.items()]


def _one_run(name: str, python: Path, folder: Path, threads: int) -> dict[str, Any]:
    if not python.exists():
        return {"status": "absent", "reason": f"{PACKAGES[name]} is not there: make bench-whole installs it"}
    done = subprocess.run(
        [str(python), "-m", "bench.whole.worker", name, str(folder), str(threads)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
    )
    if not done.stdout.strip():
        return {"status": "failed", "reason": f"the process ended with code {done.returncode}"}
    answer = json.loads(done.stdout)
    if answer["status"] == "ok":
        run.say_on_stderr(f"  {name}: {answer['wall']:.1f} s, CPU {answer['cpu']:.1f} s")
    return answer


def _row(
    case: Case, name: str, answers: list[dict[str, Any]], about: dict[str, Any], settings: run.Settings
) -> dict[str, Any]:
    last = answers[-1]
    if last["status"] != "ok":
        return case.about("train", name) | {key: last[key] for key in ("status", "reason")}
    fvu = fmean(last["fvu"])
    if not fvu < 1:
        return case.about("train", name) | {"status": "refused", "reason": f"does not learn: FVU {fvu:.3f}"}
    timing = measure.Timing(*([1e3 * answer[clock] / case.steps for answer in answers] for clock in ("wall", "cpu")))
    times = timing.summary()
    floor = roofline.floor_ms("train", case.shape, "float32", settings.ceilings)
    peaks = [answer["peak_mb"] for answer in answers if answer["peak_mb"] is not None]
    notes = {"tokens_per_s": case.shape["N"] / times["ms"] * 1e3, "fvu_last": fvu, "steps": float(case.steps)}
    return (
        case.about("train", name)
        | {"status": "ok", "reason": ""}
        | times
        | {"floor_ms": floor, "fraction_of_floor": floor / times["ms"], "peak_mb": max(peaks, default=None)}
        | {"error": None, "notes": notes}
        | about
    )


def _spent_by_children() -> float:
    """CPU seconds of the processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _why(row: dict[str, Any]) -> str:
    return f"  {row['provider']:24s} {row['status']}: {row['reason']}"


if __name__ == "__main__":
    sys.exit(main())
