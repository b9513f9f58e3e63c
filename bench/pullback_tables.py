"""`python -m bench.pullback_tables`: all features below the last of 12 layers, d = 768, F = 24,576, pulled back onto
1,000 features of the last layer, the 20 largest of each layer kept; against a loop of matrix-vector products.

The loop is written as one does it by hand, with W_enc (d, F) as transcoder_circuits stores it: `W_dec @ W_enc[:, i]`
for each target and layer; and once with encoder rows that are contiguous. It selects nothing, and is timed on some
targets, before and after ours. Random weights; one thread; CPU seconds of one process, so that what else the machine
does counts little.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pullback as pb

from .environment import describe
from .memory import forget_peak, grown

TOLERANCE = 1e-5
MIB = 2**20


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.pullback_tables", description=(__doc__ or "").split(";")[0])
    add = parser.add_argument
    add("--layers", type=int, default=12)
    add("--d-model", type=int, default=768)
    add("--d-sae", type=int, default=24576)
    add("--targets", type=int, default=1000, help="features of the last layer that we pull back onto")
    add("--compared", type=int, default=8, help="of them, those that the loops do")
    add("--k", type=int, default=20, help="sources kept of each layer")
    add("--json", type=Path, default=None, help="write the figures here as well")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sizes = options.layers, options.d_model, options.d_sae
    figures = describe(torch.device("cpu"), 1) | measure(*sizes, options.targets, options.compared, options.k)
    print(json.dumps(figures, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def measure(
    n_layers: int, d_model: int, d_sae: int, n_targets: int, n_compared: int, k: int
) -> dict[str, float | None]:
    """CPU milliseconds a target of ours, of both loops, and of the bare product of matrices, which is the floor."""
    model, sets = made_up(n_layers, d_model, d_sae)
    last = n_layers - 1
    ids = torch.arange(n_targets) * (d_sae // n_targets)
    rows = pb.pullback(model, sets, (last, ids), "residual").values  # encoder rows as they read the stream
    columns = torch.empty(d_model, d_sae)  # strided, as in a (d, F) matrix; only the columns in question are filled
    columns[:, ids] = rows.T
    decoders = [sets[layer].W_dec.detach() for layer in range(last)]
    chosen = range(0, n_targets, max(1, n_targets // n_compared))[:n_compared]

    def strided() -> None:
        for i in chosen:
            for W_dec in decoders:
                W_dec @ columns[:, ids[i]]

    def contiguous() -> None:
        for i in chosen:
            for W_dec in decoders:
                W_dec @ rows[i]

    def product() -> None:
        for W_dec in decoders:
            for some in W_dec.split(4096):
                rows @ some.T

    def ours() -> list[pb.Pullback]:
        return [pb.pullback(model, sets, (last, ids), layer, k=k) for layer in range(last)]

    strided_before, contiguous_before = cpu_seconds(strided)[0], cpu_seconds(contiguous)[0]
    held = forget_peak()
    ours_s, found = cpu_seconds(ours)
    more = grown(held)
    floor_s, _ = cpu_seconds(product)
    strided_s = (strided_before + cpu_seconds(strided)[0]) / 2 / n_compared
    contiguous_s = (contiguous_before + cpu_seconds(contiguous)[0]) / 2 / n_compared
    error = max(difference(one, W_dec, rows, i) for one, W_dec in zip(found, decoders, strict=True) for i in chosen)
    if not error <= TOLERANCE:
        raise ValueError(f"the two ways disagree by {error:.1e} of the largest pullback: no speed is worth comparing")
    products = 2 * n_targets * d_model * d_sae * len(decoders)
    return {
        "layers": n_layers,
        "d_model": d_model,
        "d_sae": d_sae,
        "targets": n_targets,
        "k": k,
        "sources": d_sae * len(decoders),
        "pullback_ms": 1e3 * ours_s / n_targets,
        "strided_loop_ms": 1e3 * strided_s,
        "contiguous_loop_ms": 1e3 * contiguous_s,
        "product_ms": 1e3 * floor_s / n_targets,
        "product_gflops": products / floor_s / 1e9,
        "times_faster_than_strided": strided_s * n_targets / ours_s,
        "times_faster_than_contiguous": contiguous_s * n_targets / ours_s,
        "product_times_faster_than_contiguous": contiguous_s * n_targets / floor_s,
        "memory_mib": more,
        "whole_table_mib": 4 * n_targets * d_sae * len(decoders) / MIB,
        "largest_difference": error,
    }


def made_up(n_layers: int, d_model: int, d_sae: int) -> tuple[Any, pb.TranscoderSet]:
    """A model that is nothing but its residual stream and heads, and random transcoders, a decoder of its own each."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    sizes = {"n_layers": n_layers, "d_model": d_model, "d_head": d_model // 4, "n_heads": 4, "d_mlp": 16}
    names = {"act_fn": "relu", "normalization_type": "LN", "n_ctx": 16, "d_vocab": 32, "seed": 0}
    model = TransformerBridge.boot_native(TransformerBridgeConfig(**sizes, **names))
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    W_enc = draw(d_sae, d_model)  # only the last layer's is read
    zeros = torch.zeros(d_sae), torch.zeros(d_model)
    made = {
        layer: pb.Transcoder(W_enc, zeros[0], draw(d_sae, d_model), zeros[1], activation=pb.TopK(32))
        for layer in range(n_layers)
    }
    return model, pb.TranscoderSet(made)


def difference(found: pb.Pullback, W_dec: Tensor, rows: Tensor, i: int) -> float:
    """Between the largest of one target and those of its whole row, by the largest of all."""
    whole = W_dec @ rows[i]
    size = whole.abs()
    values, ids = found.values[i], found.ids[i]
    best = size.topk(len(values)).values
    return float(torch.maximum((whole[ids] - values).abs().max(), (values.abs() - best).abs().max()) / best[0])


def cpu_seconds(do: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = do()
    return time.process_time() - start, result


if __name__ == "__main__":
    raise SystemExit(main())
