"""select: the k largest of every row of a matrix that is already there, ReLU included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench import data, pullbacks
from bench.registry import Case, Op, Provider, Run, Verdict
from pullback import ops

KINDS = ("normal", "ascending", "constant", "ties")


@dataclass(frozen=True)
class Rows:
    h: Tensor
    k: int


def make(case: Case, device: torch.device, g: torch.Generator) -> Rows:
    N, F, k = (case.shape[name] for name in "NFk")
    h = torch.randn(N, F, device=device, generator=g)
    if case.data == "ascending":
        h = h.sort(dim=1).values
    elif case.data == "constant":
        h = torch.full_like(h, 1.5)
    elif case.data == "ties":  # seven values
        h = (2 * h).round().clamp(-3, 3)
    elif case.data != "normal":
        raise ValueError(f"select: no data {case.data!r}; choose from {', '.join(KINDS)}")
    return Rows(h.to(data.dtype_of(case)), k)


def reference(rows: Rows) -> Tensor:
    return rows.h.double().topk(rows.k, dim=1).values.relu()


def check(rows: Rows, expected: Tensor, output: Any) -> Verdict:
    """Exact: the k largest values, each that of its id, no id twice. Which of equal entries is free."""
    values, ids = output
    ids = ids.long()
    right = (
        torch.equal(values.double().sort(dim=1, descending=True).values, expected)
        and torch.equal(rows.h.gather(1, ids).relu().double(), values.double())
        and bool((ids.sort(dim=1).values.diff(dim=1) > 0).all())
    )
    return Verdict(0.0 if right else torch.inf)


def _ours(rows: Rows) -> Run:
    return lambda: ops.topk_select(rows.h, rows.k)


def _torch(rows: Rows) -> Run:
    def run() -> tuple[Tensor, Tensor]:
        values, ids = rows.h.topk(rows.k, dim=1, sorted=False)
        return values.relu(), ids

    return run


def _compiled(rows: Rows) -> Run:
    return torch.compile(_torch(rows))


def _cases() -> tuple[Case, ...]:
    """About 64 MiB a case, on a GPU 1 GiB and less."""
    cases = [Case({"N": 24, "F": 256, "k": 4}, ("tiny",)), Case({"N": 24, "F": 200, "k": 7}, ("tiny",), data="ties")]
    for F, N in ((4096, 2048), (24576, 512), (131072, 64), (2**20, 16)):
        for k in (16, 32, 64, 128, 256, 512):
            suites = ("quick", "full") if (F, k) in ((24576, 64), (131072, 64)) else ("full",)
            cases.append(Case({"N": N, "F": F, "k": k}, suites))
        for kind in KINDS[1:]:
            for k in (16, 64, 512):
                suites = ("quick", "full") if (F, k) == (131072, 64) else ("full",)
                cases.append(Case({"N": N // 4, "F": F, "k": k}, suites, data=kind))
    for F, N in ((4096, 8192), (24576, 8192), (131072, 2048), (2**20, 128)):
        for dtype in ("float32", "bfloat16"):
            cases.append(Case({"N": N, "F": F, "k": 64}, ("gpu",), dtype))
    cases += [Case({"N": 8192, "F": 24576, "k": k}, ("gpu",)) for k in (16, 512)]
    cases += [Case({"N": 2048, "F": 131072, "k": 64}, ("gpu",), data=kind) for kind in KINDS[1:]]
    return tuple(cases)


SELECT = Op(
    name="select",
    cases=_cases(),
    inputs=make,
    reference=reference,
    check=check,
    providers=(
        *pullbacks.forced(_ours, "topk_select"),
        Provider("torch", _torch),
        Provider("torch-compile", _compiled, optional=True),
    ),
)
