"""Which machine this is, and what else it was doing while we measured."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "triton", "numpy", "pullback", "eai-sparsify", "sae-lens")


def describe(device: torch.device, threads: int) -> dict[str, Any]:
    """The header of a run: everything a reader needs to know to repeat it."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "machine": slug(gpu or cpu_model()),
        "device": device.type,
        "gpu": gpu,
        "cpu": cpu_model(),
        "cores": cores(),
        "threads": threads,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "revision": revision(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "load": round(os.getloadavg()[0], 2),
    }


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    """E.g. "AMD EPYC (25/17), avx512_bf16": virtual machines hide the rest of the name, so family, model and the
    widest vector extension tell them apart."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()

    def field(name: str) -> str:
        found = re.search(rf"^{name}\s*: (.*)$", text, flags=re.M)
        return found[1].strip() if found else "?"

    flags = field("flags").split()
    isas = [name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if name in flags]
    return f"{field('model name')} ({field('cpu family')}/{field('model')}), {isas[0] if isas else 'no avx2'}"


def slug(name: str) -> str:
    """A folder name: "NVIDIA H200" -> "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("_", "")).strip("-")


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def revision() -> str:
    """The git revision, with a "+" where the tree differs from it; "unknown" without git."""

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
        return run.stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def without_paths(sentence: str) -> str:
    """A reason fit for a results file: short, and without the folders of this machine."""
    return re.sub(r"(?<![\w.:])/[\w./+-]+/", "", sentence)[:300]


class Neighbours:
    """How many cores other processes took between two looks: busy time of the machine minus our own."""

    def __init__(self) -> None:
        self.start = self._look()

    def cores(self, own_elsewhere: float = 0.0) -> float:
        """Cores taken by others since the start; `own_elsewhere` are CPU seconds spent in processes of ours."""
        then, now = self.start, self._look()
        wall = max(now[0] - then[0], 1e-3)
        others = (now[1] - then[1]) - (now[2] - then[2]) - own_elsewhere
        return round(max(0.0, others / wall), 2)

    @staticmethod
    def _look() -> tuple[float, float, float]:
        """Wall, busy seconds over all cores (NaN where the system does not say), our own CPU seconds."""
        try:
            lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
            ours = {f"cpu{core}" for core in os.sched_getaffinity(0)}
            # user, nice, system, idle, iowait, irq, softirq, steal
            ticks = [[int(field) for field in line[1:9]] for line in lines if line[0] in ours]
            busy = sum(sum(core) - core[3] - core[4] for core in ticks) / os.sysconf("SC_CLK_TCK")
        except (OSError, AttributeError):
            busy = time.process_time()
        return time.perf_counter(), busy, time.process_time()
