"""Backends and instruction sets: how they are chosen, forced, and refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from pullback import _C, ops
from pullback.ops import cpu, dispatch, reference

PROBE = "import torch, json; from pullback import ops; print(json.dumps([ops.isa(), ops.available_isas()]))"


def probe(isa: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PULLBACK_ISA": isa}
    return subprocess.run([sys.executable, "-c", PROBE], env=env, capture_output=True, text=True, timeout=120)


def test_the_environment_chooses_the_set() -> None:
    """The narrowest set runs everywhere, so forcing it always works; an empty value means no choice."""
    run = probe("generic")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)[0] == "generic"


@pytest.mark.parametrize("name", ["sse9", "AVX2"])
def test_an_unknown_set_is_an_error_at_import(name: str) -> None:
    run = probe(name)
    assert run.returncode != 0
    assert f"RuntimeError: PULLBACK_ISA={name}: no such instruction set; available: generic" in run.stderr


@pytest.mark.skipif(len(ops.available_isas()) == 3, reason="this CPU has every instruction set")
def test_an_unsupported_set_is_an_error_at_import() -> None:
    run = probe("avx512")
    assert run.returncode != 0
    assert "RuntimeError: PULLBACK_ISA=avx512: this CPU or build does not have it" in run.stderr


def test_set_isa(isa: str) -> None:
    assert ops.isa() == isa
    with pytest.raises(RuntimeError, match="set_isa=nope: no such instruction set; available: generic"):
        ops.set_isa("nope")
    assert ops.isa() == isa


def test_the_widest_set_is_the_default() -> None:
    if "PULLBACK_ISA" not in os.environ:
        assert ops.isa() == ops.available_isas()[-1]


def test_use_backend_swaps_and_restores() -> None:
    device = torch.device("cpu")
    assert dispatch.lookup("contract", device) is cpu.contract
    with ops.use_backend("reference"):
        assert dispatch.lookup("contract", device) is reference.contract
        with ops.use_backend("auto"):
            assert dispatch.lookup("contract", device) is cpu.contract
        assert dispatch.lookup("contract", device) is reference.contract
    assert dispatch.lookup("contract", device) is cpu.contract
    with pytest.raises(KeyError), ops.use_backend("reference"):
        raise KeyError
    assert dispatch.forced() == "auto"


def test_a_device_without_kernels_runs_the_reference() -> None:
    assert dispatch.lookup("contract", torch.device("xpu")) is reference.contract
    if not {"cuda", "triton"} & set(ops.available_backends()):
        assert dispatch.lookup("contract", torch.device("cuda")) is reference.contract


def test_the_cpu_backend_takes_cpu_tensors_only() -> None:
    with ops.use_backend("cpu"), pytest.raises(ValueError, match="the cpu backend takes CPU tensors, got one on cuda"):
        dispatch.lookup("contract", torch.device("cuda"))


def test_unknown_and_absent_backends_are_named() -> None:
    with pytest.raises(ValueError, match="no backend 'tpu'; choose one of reference, cpu"), ops.use_backend("tpu"):
        pass
    for name in ("triton", "cuda"):
        if name not in ops.available_backends():
            with pytest.raises(ValueError, match=f"'{name}' does not run here: "), ops.use_backend(name):
                pass
    assert ops.available_backends()[:2] == ["reference", "cpu"]


def test_describe_is_plain_data() -> None:
    facts = ops.describe()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["isa"] == ops.isa()
    assert facts["threads"] == facts["torch_threads"] == torch.get_num_threads()
    for name in {"triton", "cuda"} - set(facts["available_backends"]):
        assert facts["reasons"][name]


def test_torch_sets_the_threads_of_the_kernels() -> None:
    """One OpenMP runtime in the process: ours is torch's."""
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert _C.max_threads() == threads
    finally:
        torch.set_num_threads(before)
