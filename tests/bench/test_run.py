"""One case: who is wrong is refused, who is missing is named, who is right is timed in turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench import measure, rows, run
from bench.registry import Absent, Case, Op, Provider, Run, Verdict
from bench.roofline import Ceilings

CPU = torch.device("cpu")
SETTINGS = run.Settings(CPU, Ceilings(100.0, 200.0, 20.0), budget=0.001, fewest=2, most=2)
CASE = Case({"N": 4, "F": 8, "k": 2}, ("tiny",))


def op(*providers: Provider) -> Op:
    return Op(
        name="select",
        cases=(CASE,),
        inputs=lambda case, device, g: torch.randn(case.shape["N"], device=device, generator=g),
        reference=lambda x: x.double() * 2,
        check=lambda x, expected, got: Verdict(float(((got - expected).abs() / 1e-6).nan_to_num(nan=torch.inf).max())),
        providers=providers,
    )


def provider(name: str, compute: Callable[[torch.Tensor], Any], **how: Any) -> Provider:
    return Provider(name, lambda x: lambda: compute(x), **how)


def test_a_provider_that_lies_is_refused_and_not_timed() -> None:
    (row,) = run.run_case(op(provider("liar", lambda x: x * 2.1)), CASE, SETTINGS, run.say_nothing)
    rows.check(row)
    assert row["status"] == "refused"
    assert "wrong" in row["reason"]
    assert "ms" not in row


def test_a_provider_that_writes_nothing_finds_poison() -> None:
    """Memory that happens to hold the right answer, from the provider before, must not pass."""

    def lazy(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x)

    right = provider("right", lambda x: x * 2)
    for row in run.run_case(op(right, provider("lazy", lazy)), CASE, SETTINGS, run.say_nothing):
        assert row["status"] == ("ok" if row["provider"] == "right" else "refused")


def test_absent_failed_and_out_of_memory_are_said() -> None:
    def missing(_: Any) -> Run:
        raise Absent("not on this planet")

    def raises(error: Exception) -> Callable[[Any], Any]:
        def compute(_: Any) -> Any:
            raise error

        return compute

    found = run.run_case(
        op(
            Provider("missing", missing),
            provider("broken", raises(RuntimeError("at /home/someone/secret/file.py: no"))),
            provider("huge", raises(torch.OutOfMemoryError("no"))),
            provider("gpu only", lambda x: x, devices=("cuda",)),
            provider("on request", lambda x: x, optional=True),
        ),
        CASE,
        SETTINGS,
        run.say_nothing,
    )
    said = {row["provider"]: (row["status"], row["reason"]) for row in found}
    assert said == {
        "missing": ("absent", "not on this planet"),
        "broken": ("failed", "RuntimeError: at file.py: no"),
        "huge": ("absent", "runs out of memory at this shape"),
    }


def test_rows_hold_what_the_schema_asks_for() -> None:
    (row,) = run.run_case(op(provider("right", lambda x: x * 2)), CASE, SETTINGS, run.say_nothing)
    rows.check(row)
    assert row["ms_best"] <= row["ms_20"] <= row["ms"] <= row["ms_80"]
    assert row["fraction_of_floor"] == pytest.approx(row["floor_ms"] / row["ms"])
    assert row["provider"] in run.line(row)


def test_providers_take_turns() -> None:
    calls: list[str] = []

    def recorded(name: str) -> Run:
        def call() -> None:
            calls.append(name)
            torch.mm(torch.randn(200, 200), torch.randn(200, 200))

        return call

    timings = measure.interleave({"a": recorded("a"), "b": recorded("b")}, CPU, budget=1e-9, fewest=4, most=4)
    assert all(len(timing.wall) == len(timing.cpu) == 4 for timing in timings.values())
    order = [name for place, name in enumerate(calls) if place == 0 or calls[place - 1] != name]
    # Warm-up, then rounds that start with a, b, a and b: ab ab ba ab ba.
    assert "".join(order) == "abababa"


def test_percentiles() -> None:
    assert measure.percentile([4.0, 1.0, 3.0, 2.0, 5.0], 0.5) == 3.0
    assert measure.percentile([0.0, 10.0], 0.2) == pytest.approx(2.0)
    assert measure.percentile([7.0], 0.8) == 7.0
    with pytest.raises(ValueError, match="no samples"):
        measure.percentile([], 0.5)
    with pytest.raises(ValueError, match="1 <= fewest <= most"):
        measure.interleave({}, CPU, fewest=3, most=2)


def test_poison_ends_with_the_block() -> None:
    with measure.poisoned():
        assert torch.empty(100).isnan().all()
        assert (torch.empty(100, dtype=torch.int32) == 2**31 - 1).all()
    assert not torch.are_deterministic_algorithms_enabled()
