"""Run where circuit-tracer is installed, with the folder of a case and the file to write: one graph of it, timed."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from circuit_tracer import __version__, attribute

sys.path.insert(0, str(Path(__file__).parents[2]))
from bench.interop.graphs_in_circuit_tracer import replacement_model
from bench.memory import forget_peak, grown


def main(folder: Path, out: Path) -> None:
    torch.set_num_threads(1)
    about = json.loads((folder / "case.json").read_text())
    model = replacement_model(folder, about["config"])
    prompt = torch.tensor(about["prompt"])
    attribute(prompt[:4], model, **about["settings"] | {"max_feature_nodes": 8})  # what is made once is made now
    before = forget_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    graph = attribute(prompt, model, **about["settings"])
    figures = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "peak_mb": grown(before)}
    graph.to_pt(str(out))
    print(json.dumps(figures | {"version": __version__}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
