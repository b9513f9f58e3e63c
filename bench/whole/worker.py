"""The process of one run: `python -m bench.whole.worker NAME FOLDER THREADS` trains once and answers one JSON line.

Wall and CPU seconds from the first tokens to the end, MiB that training took, the FVU reached, and the versions that
did it; or why there was no run.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

# Libraries that would otherwise ask a network or start a logger.
os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}

import torch  # noqa: E402

from bench import memory  # noqa: E402
from bench.environment import version, without_paths  # noqa: E402
from bench.whole.trainers import PACKAGES, TRAINERS  # noqa: E402


def main(name: str, folder: Path, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    try:
        ready = TRAINERS[name](folder)
    except ImportError as error:
        return {"status": "absent", "reason": without_paths(f"{PACKAGES[name]} cannot be imported: {error}")}
    except Exception as error:
        return _failed(error)
    gc.collect()
    before = memory.forget_peak()
    clock = {}

    def start() -> None:
        clock["wall"], clock["cpu"] = time.perf_counter(), time.process_time()

    try:
        ready.run(start)
        wall, cpu = time.perf_counter() - clock["wall"], time.process_time() - clock["cpu"]
        peak = memory.grown(before)
        fvu = ready.fvu()
    except Exception as error:
        return _failed(error)
    versions = {package: version(package) for package in ("torch", "transformers", PACKAGES[name])}
    return {"status": "ok", "wall": wall, "cpu": cpu, "peak_mb": peak, "fvu": fvu, "versions": versions}


def _failed(error: Exception) -> dict[str, Any]:
    return {"status": "failed", "reason": without_paths(f"{type(error).__name__}: {error}")}


if __name__ == "__main__":
    # Libraries print; the answer goes where stdout was, and stdout to stderr.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    channel.write(json.dumps(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))) + "\n")
    channel.flush()
