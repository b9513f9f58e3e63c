"""`python -m bench`: measure this machine and write the results down."""

from __future__ import annotations

import argparse
import os
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch

from . import environment, registry, results, roofline, rows, run
from .environment import ROOT
from .ops import OPS
from .registry import Op
from .step import compare

SUITES = {
    "quick": "the ops at a few shapes, and the training step of ours and of torch; minutes",
    "full": "every op at every shape, and the training step",
    "peers": "the same as full, in an environment that has the other libraries: see `make bench-peers`",
    "tiny": "everything once, too small to mean anything: shows that the harness works",
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--suite", choices=SUITES, default="quick", help="; ".join(f"{name}: {what}" for name, what in SUITES.items()))
    add("--tiny", action="store_const", const="tiny", dest="suite", help="the same as --suite tiny")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--ops", nargs="+", metavar="OP", help=f"only these: {', '.join(OPS)}, step")
    add("--threads", type=int, default=environment.cores(), help="CPU threads; default: all cores")
    add("--budget", type=float, default=None, help="seconds of timing a case")
    add("--rounds", type=int, default=None, help="timed training steps of each implementation")
    add("--compile", action="store_true", help="torch.compile as well; compiling takes a minute or two")
    add("--strict", action="store_true", help="refuse to start on a busy machine instead of flagging the results")
    add("--out", type=Path, default=None, help="folder of the results; default: bench/results/<machine>")
    options = parser.parse_args(arguments)
    try:
        _check(options)
        ops = registry.select(OPS, options.ops and [name for name in options.ops if name != "step"])
        _look_around(options.strict)
    except ValueError as error:
        parser.error(str(error))
    return bench(ops, options)


def bench(ops: list[Op], options: argparse.Namespace) -> int:
    """Measure, write the file, and return 1 where something of ours was wrong or failed, else 0."""
    device, tiny = torch.device(options.device), options.suite == "tiny"
    name = "gpu" if device.type == "cuda" and not tiny else options.suite
    cases = "full" if name == "peers" else name
    torch.set_num_threads(options.threads)
    header = {"kind": "run", "schema": rows.SCHEMA, "suite": name} | environment.describe(device, options.threads)
    say = run.say_on_stderr
    say(f"{header['cpu']}, {options.threads} threads" + (f", {header['gpu']}" if header["gpu"] else ""))
    ceilings = roofline.measure_ceilings(device, tiny)
    say(f"GEMM {ceilings.gemm_fp32:.0f} GFLOP/s fp32, {ceilings.gemm_bf16:.0f} bf16; memory {ceilings.stream:.0f} GB/s")
    budget = options.budget or (0.01 if tiny else 1.0 if device.type == "cuda" else 2.0)
    fewest, most = (1, 2) if tiny else (5, 50)
    settings = run.Settings(device, ceilings, budget, fewest, most, options.compile, options.threads)

    found: list[dict[str, Any]] = []
    broken: list[str] = []
    folder = options.out or ROOT / "bench" / "results" / header["machine"]
    path = folder / f"{date.today().isoformat()}-{name}.jsonl"

    def save() -> None:
        header["ceilings"] = ceilings.as_dict()
        roofline.hold_against(found, ceilings)
        rows.write(path, [header, *found])

    try:
        for op in ops:
            found += run.run_op(op, cases, settings, say)
            save()  # who is stopped early keeps what there is
        # A second look: on a machine with other work to do, one alone may be too low for a ceiling.
        ceilings = roofline.best_of(ceilings, roofline.measure_ceilings(device, tiny))
    except RuntimeError as error:  # a kernel that breaks the device ends the ops, not what they found so far
        broken.append(f"ended early: {error}")
    if options.ops is None or "step" in options.ops:
        for steps in compare.run(cases, settings, options.rounds, say):
            found += steps
            save()
    save()
    print(path)
    wrong = [row for row in found if row["status"] in ("refused", "failed")]
    for sentence in (*broken, *(f"{row['op']}, {row['provider']}: {row['reason']}" for row in wrong)):
        say(sentence)
    return 1 if broken or any(results.is_ours(row) for row in wrong) else 0


def _check(options: argparse.Namespace) -> None:
    if options.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {options.threads}")
    if options.budget is not None and options.budget <= 0:
        raise ValueError(f"--budget must be positive seconds, got {options.budget}")
    if options.rounds is not None and options.rounds < 1:
        raise ValueError(f"--rounds must be at least 1, got {options.rounds}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device here; leave --device out to measure the CPU")


def _look_around(strict: bool) -> None:
    load = os.getloadavg()[0]
    if load > environment.cores():
        sentence = f"the machine is busy: load {load:.1f} on {environment.cores()} cores"
        if strict:
            raise ValueError(f"{sentence}; wait, or leave --strict out to measure all the same")
        run.say_on_stderr(f"{sentence}; results are flagged, and only their ratios mean something")


if __name__ == "__main__":
    sys.exit(main())
