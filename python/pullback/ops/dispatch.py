"""Which implementation of an op runs: chosen by device, or forced by `use_backend`.

A backend is a module with functions named after the ops. `reference` and `cpu` hold them all; `cuda` and `triton` hold
some and are imported when a CUDA tensor first asks for them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from pullback import _C

BACKENDS = ("reference", "cpu", "triton", "cuda", "auto")
_MODULES = {name: f"pullback.ops.{name}" for name in ("reference", "cpu", "triton", "cuda")}

# One setting for the process, not one a thread: autograd runs backward passes on threads of its own.
_forced = "auto"
_reasons: dict[str, str] = {}
_loaded: dict[str, ModuleType | None] = {}


def _load(name: str) -> ModuleType | None:
    """The module of backend `name`, or None with the reason noted."""
    if name not in _loaded:
        try:
            module = importlib.import_module(_MODULES[name])
            available = getattr(module, "available", None)
            ok = available is None or bool(available())
            reason = f"the {name} backend finds no device to run on"
        except ImportError as error:
            module, ok, reason = None, False, str(error)
        _loaded[name] = module if ok else None
        if not ok:
            _reasons[name] = reason
    return _loaded[name]


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op inside on backend `name`: "reference", "cpu", "triton", "cuda" or "auto".

    An op that the backend does not have runs on the reference. The setting holds for the whole process.

    Raises:
        ValueError: no backend has this name, or this machine cannot run it.
    """
    global _forced
    if name not in BACKENDS:
        raise ValueError(f"use_backend: no backend {name!r}; choose one of {', '.join(BACKENDS)}")
    if name != "auto" and _load(name) is None:
        raise ValueError(f"use_backend: {name!r} does not run here: {_reasons[name]}")
    previous, _forced = _forced, name
    try:
        yield
    finally:
        _forced = previous


def forced() -> str:
    """The backend set by `use_backend`; "auto" outside."""
    return _forced


def lookup(op: str, device: torch.device) -> Callable[..., Any]:
    """The function that computes `op` on tensors of `device`."""
    if _forced != "auto":
        candidates: tuple[str, ...] = (_forced,)
    else:
        candidates = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}.get(device.type, ())
    for name in (*candidates, "reference"):
        if name == "cpu" and device.type != "cpu":
            raise ValueError(f"{op}: the cpu backend takes CPU tensors, got one on {device}")
        module = _load(name)
        if module is not None and hasattr(module, op):
            return getattr(module, op)
    raise NotImplementedError(f"no backend has the op {op!r}")


def available_backends() -> list[str]:
    """The backends this machine can run, e.g. ["reference", "cpu"]."""
    return [name for name in _MODULES if _load(name) is not None]


def isa() -> str:
    """The instruction set of the CPU kernels: "generic", "avx2" or "avx512"."""
    return _C.isa()


def available_isas() -> list[str]:
    """The instruction sets this CPU can run, narrowest first."""
    return list(_C.available_isas())


def set_isa(name: str) -> None:
    """Run the CPU kernels of instruction set `name` from now on, in the whole process.

    Raises:
        RuntimeError: no such set, or the CPU lacks it; the sentence names those it has.
    """
    _C.set_isa(name)


def describe() -> dict[str, Any]:
    """What this machine will use, and why: for `pullback doctor` and for bug reports."""
    for name in _MODULES:
        _load(name)
    return {
        "isa": isa(),
        "isa_reason": _isa_reason(),
        "available_isas": available_isas(),
        "cpu_features": dict(_C.cpu_features()),
        "screen": _screen_reason(),
        "openmp": _C.openmp,
        "threads": _C.max_threads(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "backend": _forced,
        "available_backends": available_backends(),
        "cuda_module": importlib.util.find_spec("pullback._cuda") is not None,
        "cuda_device": _cuda_device(),
        "triton": importlib.util.find_spec("triton") is not None,
        "reasons": dict(_reasons),
    }


def _screen_reason() -> str:
    from .screen import makes_tiles, multiplies_bf16

    if makes_tiles():
        return "bfloat16 in tiles of AMX, screened as they are made"
    if multiplies_bf16():
        return "bfloat16: this CPU multiplies it faster than float32"
    return "float32: no fast bfloat16 product (needs avx512_bf16 or AMX, the avx512 kernels, and torch with oneDNN)"


def _isa_reason() -> str:
    if os.environ.get("PULLBACK_ISA") == isa():
        return f"PULLBACK_ISA={isa()}"
    return "the widest this CPU has" if isa() == available_isas()[-1] else "set_isa"


def _cuda_device() -> str | None:
    """The name of the first CUDA device torch sees."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
