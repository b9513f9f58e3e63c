"""Tests of Triton kernels without a GPU: a process of their own, since interpretation is settled at import."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest


def run_interpreted(name: str) -> None:
    """Run the tests of a file of this folder, not collected by name, in Triton's interpreter."""
    cases = Path(__file__).with_name(name)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(cases)],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]


def _release(package: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in metadata.version(package).split(".")[:2])
    except metadata.PackageNotFoundError:
        return (0, 0)


# What a kernel counts up to by `range` is an array of one element to the interpreter, which NumPy came to refuse.
needs_ranges = pytest.mark.skipif(
    _release("triton") < (3, 7) and _release("numpy") >= (2, 4),
    reason="the interpreter of triton 3.6 cannot run loops over ranges under numpy 2.4",
)
