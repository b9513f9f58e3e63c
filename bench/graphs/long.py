"""`python -m bench.graphs.long`: one graph of a long prompt on a random model of the size of GPT-2, and the memory that
the process holds at most, model and dictionaries included; before it, what a target costs at several lengths.

That is CPU time of the dearest targets, features of the last layer at the last position, and of it the part that grows
with the square of the length: products with attention patterns, timed alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pullback as pb
from bench import environment
from bench.graphs.cases import CASES, Case, dictionaries
from bench.interop.models import random_model
from bench.memory import forget_peak, memory_mb
from pullback.attribution import Settings
from pullback.attribution.gather import linear_rows
from pullback.attribution.heads import Heads
from pullback.attribution.local import local_model
from pullback.attribution.targets import feature_batch
from pullback.lens import Lens, as_lens
from pullback.ops.frozen import mix_back
from pullback.transcoders import LayeredDictionary

TIMED = 16  # targets


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.graphs.long", description=__doc__)
    add = parser.add_argument
    add("--tokens", type=int, default=2048)
    add("--nodes", type=int, default=4096, help="features kept by influence")
    add("--lengths", type=int, nargs="*", default=[128, 256, 512, 1024], help="of prompts whose targets are timed")
    add("--edges-per-target", type=int, default=4096)
    add("--precision", choices=("float32", "bfloat16"), default="float32")
    add("--threads", type=int, default=1)
    add("--json", type=Path, default=None, help="write the figures here as well")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    about = environment.describe(torch.device("cpu"), options.threads)
    rows = [cost(T, options) for T in [*options.lengths, options.tokens]]
    rows.append(whole(options.tokens, options))
    if options.json is not None:
        options.json.write_text(json.dumps({"kind": "long graphs", **about, "rows": rows}, indent=1) + "\n")
    return 0


@contextmanager
def opened(T: int) -> Iterator[tuple[Lens, LayeredDictionary, Tensor]]:
    """Model, dictionaries in files, and a prompt."""
    case = Case("long", CASES["GPT-2 small"].shape | {"T": T})
    lens = as_lens(random_model(case.config))
    prompt = torch.randint(1, case.shape["V"], (T,), generator=torch.Generator().manual_seed(2))
    prompt[0] = 0  # BOS
    with tempfile.TemporaryDirectory() as folder:
        dictionaries(lens, prompt, case).save(folder, "pullback")
        yield lens, pb.load_transcoders(folder), prompt


def cost(T: int, options: argparse.Namespace) -> dict[str, Any]:
    with opened(T) as (lens, sets, prompt):
        precision = Settings(precision=options.precision).products(lens) if half(options) else None
        local = local_model(lens, sets, prompt, precision=precision)
        n_features = sum(acts.nnz for acts in local.acts.values())
        targets = feature_batch(local.stack, torch.arange(n_features - TIMED, n_features))
        linear_rows(local, targets[:1])  # what is made once is made now
        seconds = timed(lambda: linear_rows(local, targets))
        at_z = local.heads[0].mixing.new_ones(1, T, TIMED, local.heads[0].n_heads, local.heads[0].d_head)
        attention = timed(lambda: [mixed_back(heads, at_z) for heads in local.heads[1:]])
    row = {"tokens": T, "ms_a_target": 1e3 * seconds / TIMED, "of_it_patterns": 1e3 * attention / TIMED}
    return said(row | {"precision": options.precision})


def mixed_back(heads: Heads, at_z: Tensor) -> Tensor:
    return mix_back(at_z, heads.mixing, heads.read_scale[..., 0], heads.n_kv)


def timed(do: Callable[[], Any]) -> float:
    start = time.process_time()
    do()
    return time.process_time() - start


def whole(T: int, options: argparse.Namespace) -> dict[str, Any]:
    with opened(T) as (lens, sets, prompt):
        forget_peak()
        start = time.process_time(), time.perf_counter()
        graph = pb.attribute(
            lens,
            sets,
            prompt,
            zero_positions=slice(0, 1),
            max_feature_nodes=options.nodes,
            edges_per_target=options.edges_per_target,
            precision=options.precision if half(options) else None,
            verbose=True,
        )
        cpu, wall = time.process_time() - start[0], time.perf_counter() - start[1]
        peak = memory_mb("VmHWM")
    return said(
        {
            "tokens": T,
            "nodes": options.nodes,
            "precision": options.precision,
            "edges_per_target": options.edges_per_target,
            "cpu": cpu,
            "wall": wall,
            "peak_mb": peak,
            "check": graph.check(),
            "n_nodes": graph.n_nodes,
            "n_edges": graph.n_edges,
        }
    )


def half(options: argparse.Namespace) -> bool:
    return options.precision == "bfloat16"


def said(row: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(row), flush=True)
    return row


if __name__ == "__main__":
    raise SystemExit(main())
