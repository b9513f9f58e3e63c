"""Every test that takes `isa` runs once for each instruction set of this CPU; see `cuda` for the CUDA kernels."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch

from pullback import ops
from pullback.ops.cpu import encoders
from tests.cuda_host import build as host
from tests.cuda_host.backend import load_backend


@pytest.fixture(params=ops.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = ops.isa()
    ops.set_isa(request.param)
    yield request.param
    ops.set_isa(before)


@dataclass(frozen=True)
class Cuda:
    """The CUDA backend and the device its kernels run on."""

    ops: ModuleType
    device: str


@pytest.fixture(scope="session", params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def cuda(request: pytest.FixtureRequest) -> Cuda:
    """Every test that takes `cuda` runs with the kernels compiled for the CPU, and on a GPU where there is one.

    Start Python with LD_PRELOAD=libasan.so to have AddressSanitizer watch the kernels on the CPU.
    """
    if request.param == "host":
        if host.compiler() is None:
            pytest.skip("no g++ or pybind11 to compile the kernels for the CPU")
        return Cuda(load_backend(host.build(sanitize="asan" in os.environ.get("LD_PRELOAD", ""))), "cpu")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pytest.importorskip("pullback._cuda", reason="pullback was built without CUDA")
    return Cuda(importlib.import_module("pullback.ops.cuda"), "cuda")


@pytest.fixture(scope="module", params=["one block", "many blocks"])
def blocks(request: pytest.FixtureRequest) -> Iterator[str]:
    """The product of an encoder in blocks as large as they are, and so small that every case has many."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "many blocks":
            patch.setattr(encoders, "BLOCKS", dict.fromkeys(encoders.BLOCKS, (2, 130)))
        yield request.param
