"""The process of one implementation. It is told on stdin how many steps to take, and answers in JSON lines.

    python -m bench.step.worker NAME SHAPE DEVICE THREADS

First line: {"status": "ready"} or {"status": "absent" | "failed", "reason": ...}. For "steps 3": wall and CPU
milliseconds and loss of each. For "stop": the memory that training took.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

# Libraries that would otherwise ask a network or start a logger.
os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from bench import memory  # noqa: E402
from bench.environment import without_paths  # noqa: E402
from bench.step.implementations import IMPLEMENTATIONS, Shape  # noqa: E402

BATCHES = 2


def batches(shape: Shape, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Inputs with a decaying spectrum, as activations have, and what a random MLP makes of them."""
    g = torch.Generator().manual_seed(0)
    n, d = shape["N"], shape["d"]
    turn = torch.linalg.qr(torch.randn(d, d, generator=g))[0]
    spectrum = torch.arange(1, d + 1) ** -0.5
    w_in, w_out = (torch.randn(d, d, generator=g) / d**0.5 for _ in range(2))
    made = []
    for _ in range(BATCHES):
        x = (torch.randn(n, d, generator=g) * spectrum) @ turn
        x = x * (d**0.5 / x.norm(dim=1).mean())
        made.append((x.to(device), ((x @ w_in).relu() @ w_out).to(device)))
    return made


def main(name: str, shape: Shape, device: torch.device, threads: int, answer: Callable[[dict[str, Any]], None]) -> None:
    torch.set_num_threads(threads)
    implementation = IMPLEMENTATIONS[name]
    data = batches(shape, device)
    module = implementation.needs or "pullback.training"
    try:
        importlib.import_module(module)
    except Exception as error:
        return answer({"status": "absent", "reason": without_paths(f"{module} cannot be imported here: {error}")})
    load_optimizer()  # before the baseline, as the import was: what a library weighs is not what training takes
    gc.collect()
    before = memory.forget_peak()
    try:
        step = implementation.build(shape, device)
        answer({"status": "ready"})
        taken = 0
        for count in orders():
            result: dict[str, list[float]] = {"wall": [], "cpu": [], "loss": []}
            for _ in range(count):
                x, y = data[taken % BATCHES]
                synchronize(device)
                wall, cpu = time.perf_counter(), time.process_time()
                loss = step(x, y)
                synchronize(device)
                result["wall"].append((time.perf_counter() - wall) * 1e3)
                result["cpu"].append((time.process_time() - cpu) * 1e3)
                result["loss"].append(loss)
                taken += 1
            answer(result)
    except torch.OutOfMemoryError:
        return answer({"status": "absent", "reason": "runs out of memory at this shape"})
    except Exception as error:
        return answer({"status": "failed", "reason": without_paths(f"{type(error).__name__}: {error}")})
    if device.type == "cuda":
        return answer({"peak_mb": torch.cuda.max_memory_allocated(device) / 2**20})
    return answer({"peak_mb": memory.grown(before)})


def orders() -> Iterator[int]:
    """How many steps to take, until told to stop or left alone."""
    for line in sys.stdin:
        if not line.startswith("steps "):
            return
        yield int(line.split()[1])


def load_optimizer() -> None:
    """The first optimizer of a process imports half of torch."""
    weight = torch.ones(1, requires_grad=True)
    weight.grad = torch.ones(1)
    torch.optim.Adam([weight]).step()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    # Libraries print when they are imported; the answers go where stdout was, and stdout to stderr.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(line: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):
            channel.write(json.dumps(line) + "\n")
            channel.flush()

    main(sys.argv[1], json.loads(sys.argv[2]), torch.device(sys.argv[3]), int(sys.argv[4]), answer)
