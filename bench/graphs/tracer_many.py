"""Run where circuit-tracer is installed, with a folder that `bench.many` wrote: one graph a prompt, saved; CPU time
of one thread, wall time of several."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import mean

import torch
from circuit_tracer import __version__, attribute

sys.path.insert(0, str(Path(__file__).parents[2]))
from bench.interop.graphs_in_circuit_tracer import replacement_model


def main(folder: Path) -> None:
    about = json.loads((folder / "case.json").read_text())
    torch.set_num_threads(about["threads"])
    clock = time.process_time if about["threads"] == 1 else time.perf_counter
    prompts = [torch.tensor(prompt) for prompt in about["prompts"]]
    model = replacement_model(folder, about["config"], bos=about["prompts"][0][0])
    attribute(prompts[0], model, **about["settings"])  # what is made once is made now
    times = []
    for prompt in prompts:
        start = clock()
        attribute(prompt, model, **about["settings"]).to_pt(str(folder / "graph.pt"))
        times.append(clock() - start)
    print(json.dumps({"version": __version__, "seconds": mean(times)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
