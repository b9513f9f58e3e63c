"""What is measured: an op with its cases, its check, and the ways to compute it.

An `Op` is declared once, in `bench/ops`. A `Case` is one shape of it; its inputs are made by `Op.inputs` and handed to
every `Provider`, which returns a function without arguments that computes the op once. What a provider needs and lacks
is a sentence in the results, not a gap.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .environment import without_paths

SUITES = ("tiny", "quick", "full", "gpu")

Run = Callable[[], Any]


class Absent(Exception):
    """A provider cannot run here; the message says why."""


@dataclass(frozen=True)
class Case:
    """One shape of an op, in the suites that name it.

    Attributes:
        shape: the dimensions, named as in `roofline.cost`.
        suites: where it is run.
        dtype: of the inputs.
        data: kind of data where an op has several, e.g. "ascending".
        label: a short name in tables, e.g. "A".
    """

    shape: Mapping[str, int]
    suites: tuple[str, ...]
    dtype: str = "float32"
    data: str = "normal"
    label: str = ""

    def __post_init__(self) -> None:
        wrong = [name for name in self.suites if name not in SUITES]
        if wrong:
            raise ValueError(f"Case: no suite {wrong[0]!r}; choose from {', '.join(SUITES)}")

    @property
    def name(self) -> str:
        dims = " ".join(f"{key}={value}" for key, value in self.shape.items())
        extra = [part for part in (self.dtype, self.data) if part not in ("float32", "normal")]
        return " ".join([dims, *extra])


@dataclass(frozen=True)
class Verdict:
    """How an output compares with float64: `error` at most 1 passes, in units of the bound the op's check states."""

    error: float
    notes: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.error <= 1  # and so not NaN


@dataclass(frozen=True)
class Provider:
    """A way to compute an op.

    Attributes:
        name: as in the tables; the part before "-" is whose it is: "pullback", "torch", "sparsify", ...
        build: inputs -> a function that computes the op once; raises :class:`Absent` where it cannot.
        needs: modules that must be importable.
        devices: where it runs.
        role: "op" computes the op and is checked; "floor" runs a part that no implementation can do without, and its
            time is a bound, not a competitor.
        optional: run only if asked for by name (`--compile` asks for torch.compile).
    """

    name: str
    build: Callable[[Any], Run]
    needs: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu", "cuda")
    role: str = "op"
    optional: bool = False

    def prepare(self, inputs: Any) -> Run:
        """Raises :class:`Absent` with a reason where this provider cannot run here."""
        for module in self.needs:
            if importlib.util.find_spec(module) is None:
                raise Absent(f"{module} is not there")
        try:
            return self.build(inputs)
        except ImportError as error:
            raise Absent(without_paths(f"cannot be imported here: {error}")) from error


@dataclass(frozen=True)
class Op:
    """An op: its cases, how their inputs are made, what its output must be, and who computes it.

    Attributes:
        inputs: (case, device, generator) -> whatever its providers take.
        reference: inputs -> what `check` compares with, in float64, computed once a case.
        check: (inputs, reference, output) -> :class:`Verdict`.
    """

    name: str
    cases: tuple[Case, ...]
    inputs: Callable[[Case, torch.device, torch.Generator], Any]
    reference: Callable[[Any], Any]
    check: Callable[[Any, Any, Any], Verdict]
    providers: tuple[Provider, ...]

    def cases_of(self, suite: str) -> Iterator[Case]:
        return (case for case in self.cases if suite in case.suites)


def select(ops: Mapping[str, Op], names: list[str] | None) -> list[Op]:
    """The ops of these names, all of them for None.

    Raises:
        ValueError: an unknown name.
    """
    for name in names or []:
        if name not in ops:
            raise ValueError(f"no op {name!r}; choose from {', '.join(ops)}, step")
    return [op for op in ops.values() if names is None or op.name in names]
