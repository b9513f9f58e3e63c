"""`python -m bench.graphs`: graphs made here, in float32 and with gradients in bfloat16, and by circuit-tracer.

Times are CPU seconds of a process with one thread, selection by influence included, opening of files left out. Graphs
are compared too: with circuit-tracer's edge for edge where both chose the same features, and bfloat16's influences with
float32's by rank.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench import environment
from bench.environment import ROOT
from bench.graphs.cases import CASES, Case, write
from bench.interop.__main__ import TRACER, offline
from pullback._util.atomic import atomic_save
from pullback._util.statistics import spearman
from pullback.attribution import Graph
from pullback.attribution.nodes import FEATURE

HERE = Path(__file__).parent
PROVIDERS = ("float32", "bfloat16", "circuit-tracer")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.graphs", description=__doc__)
    add = parser.add_argument
    add("--cases", nargs="+", choices=tuple(CASES), default=["small", "GPT-2 small"])
    add("--rounds", type=int, default=3, help="graphs of each, in turns")
    add("--python", type=Path, default=TRACER, help="interpreter that has circuit-tracer (make interop installs it)")
    add("--out", type=Path, default=None, help="the file; default: bench/results/<machine>/<date>-graphs.json")
    options = parser.parse_args()
    about = environment.describe(torch.device("cpu"), 1)
    out = options.out or ROOT / "bench/results" / about["machine"] / f"{date.today().isoformat()}-graphs.json"
    found = []
    for name in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            found.append(measured(CASES[name], Path(folder), options))
        print(in_words(found[-1]))
        atomic_save(out, json.dumps({"kind": "graphs", **about, "cases": found}, indent=1) + "\n")
    print(out)
    return 0


def measured(case: Case, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Medians over the rounds, and how the graphs of the last one compare."""
    write(case, folder)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in PROVIDERS}
    load = os.getloadavg()[0]
    for turn in range(options.rounds):
        for name in PROVIDERS[:: -1 if turn % 2 else 1]:
            if name != "circuit-tracer" or options.python.exists():
                runs[name].append(one_run(name, folder, options.python))
    rows = {name: summary(done) for name, done in runs.items() if done}
    return {"case": case.name, "shape": dict(case.shape), "load": load, "rows": rows, "graphs": agreement(folder, rows)}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The last run's figures, with the median of the times and the largest peak."""
    times = [run["cpu"] for run in runs]
    return runs[-1] | {"cpu": median(times), "all_cpu": times, "peak_mb": max(run["peak_mb"] for run in runs)}


def one_run(name: str, folder: Path, python: Path) -> dict[str, Any]:
    if name == "circuit-tracer":
        command = [str(python), str(HERE / "tracer.py"), str(folder), str(folder / f"{name}.pt")]
    else:
        command = [sys.executable, "-m", "bench.graphs.worker", str(folder), name, str(folder / f"{name}.safetensors")]
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env=offline(folder) | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    print(f"  {name}: {figures['cpu']:.2f} CPU s, {figures['peak_mb']:.0f} MiB", file=sys.stderr)
    return figures


def agreement(folder: Path, rows: dict[str, Any]) -> dict[str, float]:
    full, half = (Graph.load(folder / f"{name}.safetensors") for name in PROVIDERS[:2])
    ours, low = influences(full), influences(half)
    both = sorted(ours.keys() & low.keys())
    ranks = spearman(*(torch.tensor([found[f] for f in both], dtype=torch.float64) for found in (ours, low)))
    found = {"bfloat16_rank_correlation": float(ranks), "bfloat16_same_features": len(both) / len(ours)}
    if "circuit-tracer" in rows:
        theirs = influences(Graph.from_circuit_tracer(folder / "circuit-tracer.pt"))
        same = ours.keys() & theirs.keys()
        largest = max(theirs.values())
        found["circuit_tracer_same_features"] = len(same) / len(theirs)
        found["circuit_tracer_influences_apart"] = max(abs(ours[f] - theirs[f]) for f in same) / largest
    return found


def influences(graph: Graph) -> dict[tuple[int, int, int], float]:
    """Of the features, by (layer, position, id)."""
    which, n = graph.of_kind(FEATURE), graph.nodes
    keys = zip(n.layer[which].tolist(), n.pos[which].tolist(), n.feature[which].tolist(), strict=True)
    return dict(zip(keys, graph.influence()[which].tolist(), strict=True))


def in_words(case: dict[str, Any]) -> str:
    rows = case["rows"]
    lines = [f"{case['case']}: " + " ".join(f"{name}={value}" for name, value in case["shape"].items())]
    theirs = rows.get("circuit-tracer")
    for name, row in rows.items():
        lines.append(f"  {name:15} {row['cpu']:8.2f} CPU s {row['peak_mb']:8.0f} MiB")
        if theirs and row is not theirs:
            memory = row["peak_mb"] / theirs["peak_mb"]
            lines[-1] += f"   {theirs['cpu'] / row['cpu']:.1f}x as fast, {memory:.2f} of the memory"
    return "\n".join([*lines, "  " + ", ".join(f"{name} {value:.3g}" for name, value in case["graphs"].items())])


if __name__ == "__main__":
    sys.exit(main())
