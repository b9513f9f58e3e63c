"""The parts of a training step on a CPU, one by one, beside torch's fused Adam on the same weights.

    python -m bench.step.parts [--threads 1] [--shapes A B]

CPU milliseconds of the process, best of several: what other processes do moves them little. Entries follow a
heavy-tailed popularity of features, as real activations do.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from pullback.ops import (
    DictionaryParams,
    SparseGradient,
    adam_,
    column_moments,
    decode_residual,
    feature_order,
    gradient_bound,
    gradient_norm,
    isa,
)
from pullback.ops.screen import Screen
from pullback.training import TrainStep

# rows, width, features, active features
SHAPES = {"A": (2048, 512, 8192, 32), "B": (1024, 768, 24576, 32)}


def cpu_ms(run: Callable[[], object], repeats: int = 7) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        run()
        best = min(best, time.process_time() - start)
    return 1e3 * best


def parts(n: int, d: int, F: int, k: int) -> dict[str, float]:
    random = torch.Generator().manual_seed(0)
    popularity = torch.rand(F, generator=random).pow(3)
    indices = torch.stack([torch.multinomial(popularity, k, generator=random) for _ in range(n)]).sort(1).values.int()
    values, x, y = (torch.rand(n, width, generator=random) for width in (k, d, d))
    weights = DictionaryParams(
        torch.randn(F, d, generator=random) / d**0.5, torch.zeros(F), torch.randn(F, d, generator=random) / d**0.5
    )
    mean, square = (DictionaryParams(*(torch.zeros_like(t) for t in weights)) for _ in range(2))
    b_dec = torch.zeros(d)
    residual, dots, _ = decode_residual(values, indices, weights.W_dec, b_dec, y)
    starts, order = feature_order(indices.flatten(), F)
    rows = torch.arange(n, dtype=torch.int32).repeat_interleave(k)
    grad = SparseGradient(starts, order, rows, dots.flatten(), values.flatten(), x, residual)
    screen = Screen(weights.W_enc)
    found = {
        "decode_residual": cpu_ms(lambda: decode_residual(values, indices, weights.W_dec, b_dec, y)),
        "feature_order": cpu_ms(lambda: feature_order(indices.flatten(), F)),
        "column_moments": cpu_ms(lambda: column_moments(y, b_dec)),
        "gradient_bound": cpu_ms(lambda: gradient_bound(grad)),
        "gradient_norm": cpu_ms(lambda: gradient_norm(grad, weights.W_dec)),
        "adam_": cpu_ms(lambda: adam_(grad, weights, mean, square, 1.0, 1e-4, 5)),
        "adam_ with screen": cpu_ms(lambda: adam_(grad, weights, mean, square, 1.0, 1e-4, 5, screen=screen)),
    }
    nothing = grad._replace(starts=starts * 0, order=order[:0], rows=rows[:0], dvalues=x[0, :0], values=x[0, :0])
    found["adam_ without entries"] = cpu_ms(lambda: adam_(nothing, weights, mean, square, 1.0, 1e-4, 5))
    parameters = [torch.nn.Parameter(t) for t in weights]
    for parameter in parameters:
        parameter.grad = 1e-3 * torch.randn(parameter.shape, generator=random)
    found["torch fused Adam, given a dense gradient"] = cpu_ms(torch.optim.Adam(parameters, lr=1e-4, fused=True).step)
    return found


def whole_step(n: int, d: int, F: int, k: int) -> float:
    random = torch.Generator().manual_seed(0)
    step = TrainStep(d, d, F, k=k, dead_feature_window=10**9)
    x = torch.randn(n, d, generator=random)
    y = x.relu()
    step(x, y)
    return cpu_ms(lambda: step(x, y), repeats=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.shapes:
        n, d, F, k = SHAPES[name]
        print(f"{name}: {n} rows, width {d}, {F} features, k={k}; {isa()}, {arguments.threads} threads")
        for label, ms in (parts(*SHAPES[name]) | {"whole TrainStep": whole_step(*SHAPES[name])}).items():
            print(f"  {label:42} {ms:8.2f} ms")


if __name__ == "__main__":
    main()
