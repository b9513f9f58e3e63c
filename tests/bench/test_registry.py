"""What is registered can be run: every op has cases, a floor, a check that catches a wrong output, and providers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import pullbacks, registry, roofline
from bench.ops import OPS
from bench.registry import Absent, Case, Op, Provider
from bench.step.implementations import IMPLEMENTATIONS
from pullback import ops

CPU = torch.device("cpu")
OPS_LIST = [pytest.param(op, id=op.name) for op in OPS.values()]


def tiny(op: Op) -> Any:
    case = next(op.cases_of("tiny"))
    return op.inputs(case, CPU, torch.Generator().manual_seed(0))


def correct(op: Op, inputs: Any) -> Any:
    """The output of the first provider that is not ours and runs here."""
    for provider in op.providers:
        if provider.role == "op" and not provider.name.startswith("pullback") and "cpu" in provider.devices:
            try:
                return provider.prepare(inputs)()
            except Absent:
                continue
    raise AssertionError(f"{op.name} has nobody to compare with")


@pytest.mark.parametrize("op", OPS_LIST)
def test_every_op_has_cases_ours_others_and_a_floor(op: Op) -> None:
    assert list(op.cases_of("tiny"))
    assert list(op.cases_of("full"))
    assert list(op.cases_of("gpu"))
    names = [provider.name for provider in op.providers]
    assert "pullback" in names
    assert len(set(names)) == len(names)
    assert any(not name.startswith("pullback") for name in names)
    for case in op.cases:
        assert sum(phase.flops + phase.bytes for phase in roofline.cost(op.name, case.shape)) > 0


@pytest.mark.parametrize("op", OPS_LIST)
def test_the_check_passes_what_is_right(op: Op) -> None:
    inputs = tiny(op)
    expected = op.reference(inputs)
    assert op.check(inputs, expected, correct(op, inputs)).passed


def tampered(output: Any, how: str) -> Any:
    """The output with its floating point part off in one entry."""
    if isinstance(output, Tensor):
        off = output.detach().clone(memory_format=torch.contiguous_format)
        off.view(-1)[0] = {"nan": torch.nan, "off": off.view(-1)[0] * 1.01 + 0.01, "zero": 0.0}[how]
        return off
    if isinstance(output, tuple):
        first = next(place for place, part in enumerate(output) if part.is_floating_point())
        return tuple(tampered(part, how) if place == first else part for place, part in enumerate(output))
    return replace(output, values=tampered(output.values, how))


@pytest.mark.parametrize("how", ["nan", "off", "zero"])
@pytest.mark.parametrize("op", OPS_LIST)
def test_the_check_refuses_one_wrong_entry(op: Op, how: str) -> None:
    inputs = tiny(op)
    expected = op.reference(inputs)
    assert not op.check(inputs, expected, tampered(correct(op, inputs), how)).passed


@pytest.mark.parametrize("name", ["topk_encode", "select"])
def test_a_feature_left_out_or_taken_twice_is_seen(name: str) -> None:
    op = OPS[name]
    inputs = tiny(op)
    expected = op.reference(inputs)
    values, ids = (t.clone() for t in correct(op, inputs))
    h = inputs.h if name == "select" else torch.addmm(inputs.b_enc, inputs.x, inputs.W_enc.T)

    worst = h[0].argmin()
    swapped_values, swapped = values.clone(), ids.clone()
    swapped[0, 0], swapped_values[0, 0] = worst, h[0, worst].relu()
    assert not op.check(inputs, expected, (swapped_values, swapped)).passed

    values[0, 1], ids[0, 1] = values[0, 0], ids[0, 0]
    assert not op.check(inputs, expected, (values, ids)).passed


def test_suites_and_ops_are_known_by_name() -> None:
    with pytest.raises(ValueError, match="no suite 'nightly'; choose from tiny, quick"):
        Case({"N": 1}, ("nightly",))
    with pytest.raises(ValueError, match="no op 'nonsense'; choose from topk_encode"):
        registry.select(OPS, ["nonsense"])
    assert [op.name for op in registry.select(OPS, ["decode"])] == ["decode"]
    assert registry.select(OPS, []) == []


def test_what_a_provider_lacks_is_a_sentence() -> None:
    def broken(_: Any) -> Any:
        raise ImportError("cannot import name 'x' from 'y' (/some/where/y.py)")

    with pytest.raises(Absent, match="no_such_library is not there"):
        Provider("other", lambda _: dict, needs=("no_such_library",)).prepare(None)
    with pytest.raises(Absent) as caught:
        Provider("other", broken).prepare(None)
    assert "/some" not in str(caught.value)


def test_every_training_step_runs_somewhere() -> None:
    for name, one in IMPLEMENTATIONS.items():
        assert name == one.name
        assert one.suites
        assert set(one.devices) <= {"cpu", "cuda"}
    assert {one.role for one in IMPLEMENTATIONS.values()} == {"op", "floor"}


def test_a_backend_that_lacks_an_op_is_not_timed_as_the_reference() -> None:
    has_none = pullbacks._on_backend("reference", ("decode_csr", "contract"), lambda _: dict)
    with pytest.raises(Absent, match="the reference backend has no decode_csr"):
        has_none(None)
    with pytest.raises(Absent, match="the abacus backend does not run here"):
        pullbacks._on_backend("abacus", ("decode_csr",), lambda _: dict)(None)


def test_a_forced_instruction_set_is_taken_back() -> None:
    before = ops.isa()
    assert pullbacks._on_isa("generic", lambda _: ops.isa)(None)() == "generic"
    assert ops.isa() == before
    with pytest.raises(Absent, match="this CPU has no avx10"):
        pullbacks._on_isa("avx10", lambda _: dict)(None)
