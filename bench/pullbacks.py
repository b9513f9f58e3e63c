"""Our own ops as providers: as they are chosen by default, and forced onto one instruction set or backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pullback import ops
from pullback.ops import dispatch

from .registry import Absent, Provider, Run


def forced(build: Callable[[Any], Run], *names: str) -> tuple[Provider, ...]:
    """`build` as it is, on AVX2 only, and on each GPU backend that has one of the dispatched ops `names`."""
    return (
        Provider("pullback", build),
        Provider("pullback-avx2", _on_isa("avx2", build), devices=("cpu",)),
        Provider("pullback-triton", _on_backend("triton", names, build), devices=("cuda",)),
        Provider("pullback-cuda", _on_backend("cuda", names, build), devices=("cuda",)),
    )


def _on_isa(isa: str, build: Callable[[Any], Run]) -> Callable[[Any], Run]:
    def prepare(inputs: Any) -> Run:
        if isa not in ops.available_isas():
            raise Absent(f"this CPU has no {isa}")
        run = build(inputs)

        def on_isa() -> Any:
            before = ops.isa()
            ops.set_isa(isa)
            try:
                return run()
            finally:
                ops.set_isa(before)

        return on_isa

    return prepare


def _on_backend(backend: str, names: tuple[str, ...], build: Callable[[Any], Run]) -> Callable[[Any], Run]:
    def prepare(inputs: Any) -> Run:
        if backend not in dispatch.available_backends():
            raise Absent(f"the {backend} backend does not run here: {dispatch.describe()['reasons'].get(backend, '')}")
        with dispatch.use_backend(backend):
            # An op that a backend lacks falls back to the reference, which would be timed under a wrong name.
            if all("reference" in dispatch.lookup(name, torch.device("cuda")).__module__ for name in names):
                raise Absent(f"the {backend} backend has no {names[0]}")
            run = build(inputs)

        def on_backend() -> Any:
            with dispatch.use_backend(backend):
                return run()

        return on_backend

    return prepare
