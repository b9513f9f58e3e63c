"""Run as `python -m bench.graphs.worker FOLDER PRECISION OUT`: one graph made here; prints its figures."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

import pullback as pb
from bench.graphs.cases import load_model
from bench.memory import forget_peak, grown


def main(folder: Path, precision: str, out: Path) -> None:
    torch.set_num_threads(1)
    about = json.loads((folder / "case.json").read_text())
    model, sets = load_model(about), pb.load_transcoders(folder / "transcoders")
    for layer in sets.values():
        for weight in layer.parameters():
            weight.sum()  # read from its file, so that it does not count as memory of the graph
    prompt, settings = torch.tensor(about["prompt"]), about["settings"] | {"zero_positions": slice(0, 1)}
    pb.attribute(model, sets, prompt[:4], **settings | {"max_feature_nodes": 8})  # what is made once is made now
    before = forget_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    graph = pb.attribute(model, sets, prompt, precision=None if precision == "float32" else precision, **settings)
    figures = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "peak_mb": grown(before)}
    graph.save(out)
    print(json.dumps(figures | {"check": graph.check()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
