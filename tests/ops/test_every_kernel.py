"""The small run that memory checkers watch: it leaves no kernel out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tools import every_kernel

import pullback.ops
from tests.cuda_host import build as host
from tests.cuda_host.backend import load_backend

SCRIPT = Path(every_kernel.__file__)


def test_knows_the_kernels_of_both_kinds() -> None:
    assert {"select_rows", "adam_features", "sum_squares", "contract_kernel", "pick_kernel"} <= every_kernel.names()


@pytest.mark.skipif(host.compiler() is None, reason="no g++ or pybind11 to compile the kernels for the CPU")
@pytest.mark.parametrize("part", [every_kernel.select, every_kernel.train], ids=lambda part: part.__name__)
def test_runs_on_the_host_harness(part, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = load_backend(host.build())
    monkeypatch.setitem(sys.modules, "pullback.ops.cuda", cuda)
    monkeypatch.setattr(pullback.ops, "cuda", cuda, raising=False)
    monkeypatch.setitem(sys.modules, "pullback.ops.triton", pullback.ops.reference)
    monkeypatch.setattr(pullback.ops, "triton", pullback.ops.reference, raising=False)
    monkeypatch.setattr(every_kernel, "DEVICE", "cpu")
    part()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_leaves_no_kernel_out() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--names"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
