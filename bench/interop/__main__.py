"""`python -m bench.interop`: write, let the neighbours read and write, read, and say how far the results lie apart."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.interop.sizes import D, F
from pullback._util.atomic import atomic_save
from pullback.transcoders import (
    CrossLayerTranscoder,
    JumpReLU,
    ReLU,
    SourceLayer,
    TopK,
    Transcoder,
    TranscoderSet,
    load_transcoders,
)

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ROWS, LAYERS = 1000, 2
TOLERANCE = 1e-5  # of the largest output; the same sums in another order
PEERS, TRACER = ROOT / "build/bench-peers/bin/python", ROOT / "build/bench-circuit-tracer/bin/python"
NEIGHBOURS = {"saelens": PEERS, "sparsify": PEERS, "circuit_tracer": TRACER}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.interop", description=__doc__)
    add = parser.add_argument
    add("--neighbours", nargs="+", choices=tuple(NEIGHBOURS), default=list(NEIGHBOURS))
    add("--python", type=Path, default=None, help="interpreter that has them all (default: the Makefile's)")
    add("--out", type=Path, default=HERE / "results.json", help="where the figures go")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for neighbour in options.neighbours:
        with tempfile.TemporaryDirectory() as folder:
            rows += exchange(neighbour, Path(folder), options.python or NEIGHBOURS[neighbour])
    for row in rows:
        verdict = "ok" if row["ok"] else "DIFFERS"
        print(f"{row['neighbour']:20} {row['direction']:9} {row['case']:34} {row['largest_difference']:.1e}  {verdict}")
    atomic_save(options.out, json.dumps({"tolerance": TOLERANCE, "rows": rows}, indent=1) + "\n")
    return 0 if all(row["ok"] for row in rows) else 1


def exchange(neighbour: str, folder: Path, python: Path) -> list[dict[str, Any]]:
    """Rows of one neighbour. Its script gets the folder and leaves `theirs.json` and tensors in it."""
    x = torch.randn(ROWS, D, generator=torch.Generator().manual_seed(0))
    ours = {}
    for case, (sets, options) in ours_for(neighbour, x).items():
        sets.save(folder / "ours" / case, neighbour.replace("_", "-"), **options)
        # A calibrated set is compared as it was written: with its thresholds.
        written = load_transcoders(folder / "ours" / case)
        ours |= {f"{case}/{layer}": y for layer, y in outputs_of(written, x).items()}
    save_file({"x": x}, folder / "inputs.safetensors")
    command = [str(python), str(HERE / f"in_{neighbour}.py"), str(folder)]
    subprocess.run(command, check=True, env=offline(folder), stdout=sys.stderr)
    there = load_file(folder / "outputs_of_ours.safetensors")
    theirs = json.loads((folder / "theirs.json").read_text())
    name = f"{neighbour} {theirs['version']}"
    rows = [compare(name, "to them", case, y, there[case]) for case, y in sorted(ours.items())]
    outputs = load_file(folder / "outputs_of_theirs.safetensors")
    for case, options in theirs["options"].items():
        for layer, y in outputs_of(load_transcoders(folder / "theirs" / case, **options), x).items():
            rows.append(compare(name, "from them", f"{case}/{layer}", y, outputs[f"{case}/{layer}"]))
    return rows


def offline(home: Path) -> dict[str, str]:
    """The environment of a neighbour: nothing of ours, and no network."""
    environment = {"PATH": "", "HF_HUB_OFFLINE": "1", "HOME": str(home), "OMP_NUM_THREADS": "1"}
    if "CIRCUIT_TRACER" in os.environ:  # a checkout, instead of what is installed
        environment["PYTHONPATH"] = os.environ["CIRCUIT_TRACER"]
    return environment


def outputs_of(loaded: TranscoderSet | CrossLayerTranscoder, x: Tensor) -> dict[int, Tensor]:
    """{layer: output}, where every layer reads x."""
    if isinstance(loaded, CrossLayerTranscoder):
        return loaded(dict.fromkeys(loaded.layers, x))
    return {layer: transcoder(x) for layer, transcoder in loaded.items()}


def compare(neighbour: str, direction: str, case: str, here: Tensor, there: Tensor) -> dict[str, Any]:
    difference = float((here - there).abs().max() / there.abs().max())
    return {
        "neighbour": neighbour,
        "direction": direction,
        "case": case,
        "largest_difference": difference,
        "ok": difference <= TOLERANCE,
    }


def ours_for(neighbour: str, x: Tensor) -> dict[str, tuple[TranscoderSet | CrossLayerTranscoder, dict[str, Any]]]:
    """Dictionaries that the neighbour's layout can hold, and how they are saved."""
    theta = torch.linspace(0, 2, F)
    inputs = {"calibrate": dict.fromkeys(range(LAYERS), x)}
    relu = {"relu": (a_set(ReLU()), {}), "relu skip": (a_set(ReLU(), skip=True), {})}
    jump = {"jumprelu": (a_set(JumpReLU(theta)), {}), "jumprelu skip": (a_set(JumpReLU(theta), skip=True), {})}
    topk: dict[str, Any] = {"topk": (a_set(TopK(16)), {}), "topk skip": (a_set(TopK(16), skip=True), {})}
    if neighbour == "sparsify":
        return topk | {"topk, names of GPT-2": (a_set(TopK(16)), {"hookpoint": "h.{layer}.mlp"})}
    calibrated = {"topk, calibrated": (a_set(TopK(16)), inputs)}
    if neighbour == "circuit_tracer":
        across = {
            "cross-layer, relu": (across_layers(ReLU()), {}),
            "cross-layer, jumprelu": (across_layers(JumpReLU(theta)), {}),
            "cross-layer, topk, calibrated": (across_layers(TopK(16)), inputs),
            "cross-layer, tied per source": (across_layers(JumpReLU(theta), "per_source"), {}),
            "cross-layer, tied per target": (across_layers(JumpReLU(theta), "per_target"), {}),
        }
        return relu | jump | calibrated | across
    autoencoders = {
        f"autoencoder, {rule.name}": (a_set(rule, hook_in="hook_resid_post", hook_out="hook_resid_post"), {})
        for rule in (ReLU(), JumpReLU(theta), TopK(16))
    }
    return relu | jump | calibrated | autoencoders


def drawing() -> Callable[..., Tensor]:
    """draw(*shape): random weights, about as large as trained ones."""
    g = torch.Generator().manual_seed(1)
    return lambda *shape: torch.randn(*shape, generator=g) / D**0.5


def across_layers(rule: Any, tying: str = "none") -> CrossLayerTranscoder:
    draw = drawing()
    blocks = range(LAYERS, 0, -1) if tying == "none" else [1] * LAYERS
    layers = [SourceLayer(draw(F, D), draw(F), draw(F, n, D), draw(D), activation=rule) for n in blocks]
    return CrossLayerTranscoder(dict(enumerate(layers)), tying)


def a_set(rule: Any, *, skip: bool = False, **hooks: str) -> TranscoderSet:
    draw = drawing()

    def transcoder() -> Transcoder:
        weights = (draw(F, D), draw(F), draw(F, D), draw(D), draw(D, D) if skip else None)
        return Transcoder(*weights, activation=rule, **hooks)

    return TranscoderSet({layer: transcoder() for layer in range(LAYERS)})


if __name__ == "__main__":
    sys.exit(main())
