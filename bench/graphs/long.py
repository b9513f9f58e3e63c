"""`python -m bench.graphs.long`: one graph of a long prompt on a random model of the size of GPT-2, and the memory that
the process holds at most, model and dictionaries included; then what a target costs at several lengths of the prompt.

Features explained are spread over layers and positions as influence chooses them, so a target's cost is CPU seconds of
all of them, divided by their number, with the forward pass left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import pullback as pb
from bench import environment
from bench.graphs.cases import CASES, Case, dictionaries
from bench.interop.models import random_model
from bench.memory import forget_peak, memory_mb
from pullback.attribution.local import local_model
from pullback.lens import as_lens


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.graphs.long", description=__doc__)
    add = parser.add_argument
    add("--tokens", type=int, default=2048)
    add("--nodes", type=int, default=4096, help="features kept by influence")
    add("--lengths", type=int, nargs="*", default=[], help="of further, shorter prompts")
    add("--shorter-nodes", type=int, default=256, help="features kept of those")
    add("--edges-per-target", type=int, default=4096)
    add("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    add("--threads", type=int, default=1)
    add("--json", type=Path, default=None, help="write the figures here as well")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    about = environment.describe(torch.device("cpu"), options.threads)
    wanted = [(T, options.shorter_nodes) for T in options.lengths] + [(options.tokens, options.nodes)]
    rows = []
    for T, nodes in wanted:
        rows.append(measured(T, nodes, options))
        print(json.dumps(rows[-1]), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps({"kind": "long graphs", **about, "rows": rows}, indent=1) + "\n")
    return 0


def measured(T: int, nodes: int, options: argparse.Namespace) -> dict[str, Any]:
    case = Case("long", CASES["GPT-2 small"].shape | {"T": T, "M": nodes})
    model = random_model(case.config)
    lens = as_lens(model)
    prompt = torch.randint(1, case.shape["V"], (T,), generator=torch.Generator().manual_seed(2))
    prompt[0] = 0  # BOS
    with tempfile.TemporaryDirectory() as folder:
        dictionaries(lens, prompt, case).save(folder, "pullback")
        sets = pb.load_transcoders(folder)
        start = time.process_time()
        local_model(lens, sets, prompt, zero_positions=slice(0, 1))
        read = time.process_time() - start
        forget_peak()
        start, wall = time.process_time(), time.perf_counter()
        graph = pb.attribute(
            model,
            sets,
            prompt,
            zero_positions=slice(0, 1),
            max_feature_nodes=nodes,
            edges_per_target=options.edges_per_target,
            precision=None if options.precision == "float32" else options.precision,
            verbose=True,
        )
        cpu, wall = time.process_time() - start, time.perf_counter() - wall
        peak = memory_mb("VmHWM")
    return {
        "tokens": T,
        "nodes": nodes,
        "precision": options.precision,
        "edges_per_target": options.edges_per_target,
        "cpu": cpu,
        "wall": wall,
        "read_cpu": read,
        "ms_a_target": 1e3 * (cpu - read) / nodes,
        "peak_mb": peak,
        "check": graph.check(),
        "n_nodes": graph.n_nodes,
        "n_edges": graph.n_edges,
    }


if __name__ == "__main__":
    raise SystemExit(main())
