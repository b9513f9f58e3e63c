"""`python -m bench.paths`: paths to one feature of the last layer on a random model of the size of GPT-2 small, beside
the same search as transcoder_circuits computes it; one thread, CPU seconds and memory, a JSON line each.

The other search is written after a description of that code's costs: a path at a time and a layer at a time, all
features of all tokens encoded and decoded again, a product of the reading vector with the whole decoder, W_V and W_O
of all layers stacked, and what every head moves from every position to every other as one tensor (head, to, from,
d_model). The paths must be the same. The figure that transcoder_circuits itself was measured at, on another machine of
this kind, is among ours.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.graphs.cases import CASES, Case, dictionaries
from bench.interop.models import random_model
from bench.memory import forget_peak, grown
from pullback.attribution import FeatureTarget
from pullback.attribution.local import LocalModel, local_model
from pullback.attribution.paths import Paths, SearchSettings, paths_of
from pullback.lens import Lens, as_lens

MEASURED = 14.8  # CPU seconds of transcoder_circuits, GPT-2 small, 64 tokens, 2 steps, 5 branches, one thread
ITERS, BRANCHES, ROUNDS = 2, 5, 9
TOLERANCE = 1e-3


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.paths", description=(__doc__ or "").split(";")[0])
    parser.add_argument("--smoke", action="store_const", const="smoke", default="GPT-2 small", dest="case")
    parser.add_argument("--out", type=Path, default=None, help="write the lines here as well")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    lines = [json.dumps(row) for row in measure(CASES[options.case])]
    print("\n".join(lines))
    if options.out is not None:
        options.out.write_text("\n".join(lines) + "\n")
    return 0


def measure(case: Case) -> list[dict[str, Any]]:
    """A row of ours and one of the other way. Raises ValueError where they find other paths."""
    lens = as_lens(random_model(case.config))
    prompt = torch.randint(1, case.shape["V"], (case.shape["T"],), generator=torch.Generator().manual_seed(2))
    prompt[0] = 0
    sets = dictionaries(lens, prompt, case)
    local_model(lens, sets, prompt)  # what is made once is made now
    reading = measured(lambda: local_model(lens, sets, prompt))
    local = reading.result
    root = strongest(local)
    settings = SearchSettings(ITERS, BRANCHES)
    # The first search makes what the prompt's heads read; later ones of the same prompt find it.
    first = measured(lambda: paths_of(lens, local, root, settings))
    again = [measured(lambda: paths_of(lens, local, root, settings)).cpu for _ in range(ROUNDS)]
    same = SearchSettings(ITERS, BRANCHES, ln="ratio", reference=True)
    ours = paths_of(lens, local, root, same)
    theirs = measured(lambda: OneByOne(lens, local).search(root))
    must_agree(ours, theirs.result)
    about = {"kind": "paths", "case": case.name, "shape": case.shape, "iters": ITERS, "branches": BRANCHES}
    search = {"cpu_s": statistics.median(again), "first_cpu_s": first.cpu, "prompt_cpu_s": reading.cpu}
    faster = {
        "times_faster": theirs.cpu / search["cpu_s"],
        "times_faster_with_prompt": (theirs.cpu + reading.cpu) / (first.cpu + reading.cpu),
    }
    if case.name == "GPT-2 small":
        faster["times_faster_than_measured"] = MEASURED / search["cpu_s"]
        faster["times_faster_than_measured_with_prompt"] = MEASURED / (first.cpu + reading.cpu)
    memory = {"peak_mb": first.peak_mb, "prompt_peak_mb": reading.peak_mb}
    return [
        about | {"provider": "pullback"} | search | memory | faster | {"transcoder_circuits_cpu_s": MEASURED},
        about | {"provider": "one by one", "cpu_s": theirs.cpu, "peak_mb": theirs.peak_mb},
    ]


class Measured(NamedTuple):
    result: Any
    cpu: float
    peak_mb: float | None


def measured(do: Callable[[], Any]) -> Measured:
    # What was freed before and kept would hide what is taken now.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    before, start = forget_peak(), time.process_time()
    result = do()
    return Measured(result, time.process_time() - start, grown(before))


def strongest(local: LocalModel) -> FeatureTarget:
    """The most active feature of the last layer at the last position."""
    layer, pos = local.n_layers - 1, local.n_pos - 1
    ids, z = local.acts[layer].row(pos)
    return FeatureTarget(layer, pos, int(ids[z.argmax()]))


def must_agree(ours: Paths, theirs: list[dict[tuple[str, ...], float]]) -> None:
    for found, expected in zip([ours.of_length(n) for n in range(2, len(theirs) + 2)], theirs, strict=True):
        contributions = {path.nodes: path.contribution for path in found}
        worst = max((abs(contributions.get(nodes, 0) - c) / abs(c) for nodes, c in expected.items()), default=0.0)
        if contributions.keys() != expected.keys() or not worst <= TOLERANCE:
            raise ValueError(f"the two searches find other paths: {contributions} and {expected}")


class Step(NamedTuple):
    path: tuple[str, ...]
    vector: Tensor
    layer: int
    after_attention: bool
    pos: int
    contribution: float


class OneByOne:
    """The search path by path, with what transcoder_circuits computes of each layer for each."""

    def __init__(self, lens: Lens, local: LocalModel) -> None:
        self.lens, self.local, self.trace = lens, local, local.trace

    @torch.no_grad()
    def search(self, root: FeatureTarget) -> list[dict[tuple[str, ...], float]]:
        start = self._feature((), root.layer, root.feature, root.position, 0.0, torch.ones(()))
        paths, found = [start], []
        for _ in range(ITERS):
            new = [child for path in paths for child in self._children(path)]
            paths = sorted(new, key=lambda step: -step.contribution)[:BRANCHES]
            found.append({step.path: step.contribution for step in paths})
        return found

    def _children(self, at: Step) -> list[Step]:
        if at.layer == 0 and not at.after_attention:
            return []
        found: list[Step] = []
        for k in range(at.layer):
            found += self._features(at, k)
        for k in range(at.layer + at.after_attention):
            found += self._heads(at, k)
        x = self.trace.layers[0].x_pre[at.pos]
        token = f"E_{int(self.trace.tokens[at.pos])}_{at.pos}"
        found.append(Step((*at.path, token), at.vector, 0, False, at.pos, float(x @ at.vector)))
        return sorted(found, key=lambda step: -step.contribution)[:BRANCHES]

    def _features(self, at: Step, k: int) -> list[Step]:
        z = self._forward(k)[at.pos]
        pulled = self.local.sets[k].W_dec @ at.vector
        best = (z * pulled).topk(BRANCHES)
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [self._feature(at.path, k, j, at.pos, c, pulled[j]) for j, c in rows if c]

    def _forward(self, k: int) -> Tensor:
        """Features of all tokens, dense. (The reconstruction is made as well, and not used.)"""
        tc = self.local.sets[k]
        h = self.trace.layers[k].read(tc.hook_in) @ tc.W_enc.T + tc.b_enc
        z = h * (h > tc.activation.theta)
        torch.addmm(tc.b_dec, z, tc.W_dec)
        return z

    def _feature(self, path: tuple[str, ...], k: int, j: int, pos: int, contribution: float, pulled: Tensor) -> Step:
        tc, block = self.local.sets[k], self.trace.layers[k]
        v = _through_norm(tc.W_enc[j] * pulled, block.read(tc.hook_in)[pos], block.mlp_stream[pos])
        return Step((*path, f"{k}_{j}_{pos}"), v, k, True, pos, contribution)

    def _heads(self, at: Step, k: int) -> list[Step]:
        W_V, W_O = (torch.stack([getattr(b.weights, w) for b in self.trace.layers]) for w in ("W_V", "W_O"))
        block = self.trace.layers[k]
        ov = torch.einsum("hde,hef,f->hd", W_V[k], W_O[k], at.vector)
        normed = block.weights.ln1(block.x_pre, block.ln1_scale)
        moved = block.pattern[..., None] * normed  # (head, to, from, d_model)
        contributions = torch.einsum("htsd,hd->hts", moved, ov)[:, at.pos]
        contributions[:, 0] = 0
        n_heads, T = contributions.shape
        best = contributions.flatten().topk(min(BRANCHES, n_heads))
        found = []
        for place, contribution in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            h, s = divmod(place, T)
            v = _through_norm(ov[h] * block.pattern[h, at.pos, s], normed[s], block.x_pre[s])
            found.append(Step((*at.path, f"{k}_head_{h}_{s}"), v, k, False, s, contribution))
        return found


def _through_norm(v: Tensor, normed: Tensor, x: Tensor) -> Tensor:
    return v * (v @ normed) / (v @ x)


if __name__ == "__main__":
    sys.exit(main())
