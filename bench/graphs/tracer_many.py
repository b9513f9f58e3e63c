"""Run where circuit-tracer is installed, with a folder that `bench.many` wrote: one graph a prompt, saved; CPU time."""

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
    torch.set_num_threads(1)
    about = json.loads((folder / "case.json").read_text())
    prompts = [torch.tensor(prompt) for prompt in about["prompts"]]
    model = replacement_model(folder, about["config"], bos=about["prompts"][0][0])
    attribute(prompts[0], model, **about["settings"])  # what is made once is made now
    times = []
    for prompt in prompts:
        start = time.process_time()
        attribute(prompt, model, **about["settings"]).to_pt(str(folder / "graph.pt"))
        times.append(time.process_time() - start)
    print(json.dumps({"version": __version__, "cpu": mean(times)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
