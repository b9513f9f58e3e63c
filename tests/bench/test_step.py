"""Training steps: torch's ways to write one agree, what does not learn is refused, a process that dies is a row."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench import data, measure, rows, run
from bench.roofline import Ceilings
from bench.step import compare, implementations, worker
from bench.step.implementations import IMPLEMENTATIONS, Implementation

CPU = torch.device("cpu")
SETTINGS = run.Settings(CPU, Ceilings(100.0, 200.0, 20.0))


def test_torchs_steps_are_one_and_the_same() -> None:
    batches = worker.batches(data.TINY, CPU)
    losses = []
    for build in (implementations.torch_sparse, implementations.torch_dense, implementations.torch_csr):
        step = build(data.TINY, CPU)
        losses.append([step(*batches[i % 2]) for i in range(6)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)
    assert losses[0][4] < losses[0][0]


def test_batches_are_the_same_for_everyone() -> None:
    first, again = worker.batches(data.TINY, CPU), worker.batches(data.TINY, CPU)
    for (x, y), (x_again, y_again) in zip(first, again, strict=True):
        assert torch.equal(x, x_again)
        assert torch.equal(y, y_again)
    assert not torch.equal(first[0][0], first[1][0])


def answers(orders: list[int], monkeypatch: pytest.MonkeyPatch, name: str) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = []
    monkeypatch.setattr(worker, "orders", lambda: iter(orders))
    worker.main(name, data.TINY, CPU, torch.get_num_threads(), said.append)
    return said


def test_a_worker_does_what_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ready, first, second, end = answers([2, 1], monkeypatch, "pullback")
    assert ready == {"status": "ready"}
    assert [len(first[key]) for key in ("wall", "cpu", "loss")] == [2, 2, 2]
    assert len(second["wall"]) == 1
    assert end["peak_mb"] is None or end["peak_mb"] >= 0


@pytest.mark.parametrize(
    ("error", "status"), [(torch.OutOfMemoryError("no"), "absent"), (RuntimeError("no"), "failed")]
)
def test_a_step_that_cannot_be_built_is_said(error: Exception, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: Any) -> Any:
        raise error

    monkeypatch.setitem(worker.IMPLEMENTATIONS, "broken", Implementation("broken", build))
    (said,) = answers([], monkeypatch, "broken")
    assert said["status"] == status


class Ended:
    """A worker that has taken its steps."""

    def __init__(self, losses: list[float]) -> None:
        self.losses, self.ready = losses, True
        self.timing = measure.Timing([2.0, 3.0], [2.0, 3.0])

    def stop(self) -> float:
        return 12.5


def row(losses: list[float], name: str = "pullback") -> dict[str, Any]:
    made = compare._row(IMPLEMENTATIONS[name], Ended(losses), data.TINY, "A", SETTINGS, 0.0, 0.0)  # type: ignore[arg-type]
    rows.check(made)
    return made


@pytest.mark.parametrize("losses", [[1.0, 1.1], [1.0, float("nan")], [1.0, 1.0]])
def test_a_step_that_does_not_learn_is_refused(losses: list[float]) -> None:
    assert row(losses)["status"] == "refused"


def test_a_step_that_learns_is_a_row() -> None:
    made = row([1.0, 0.5])
    assert made["ms"] == 2.5
    assert made["peak_mb"] == 12.5
    assert made["notes"]["tokens_per_s"] == pytest.approx(data.TINY["N"] / 2.5e-3)
    assert row([0.0, 0.0], "GEMM bf16 + Adam")["status"] == "ok"  # a floor learns nothing


def test_a_process_that_dies_is_a_row() -> None:
    one = Implementation("no such implementation", implementations.floor)
    process = compare.Worker(one, data.TINY, "cpu", 1)
    process.wait()
    assert process.answered["status"] == "failed"
    assert "ended with code" in process.answered["reason"]
    process.close()


def test_a_library_that_is_missing_costs_no_process() -> None:
    one = Implementation("other", implementations.floor, needs="no_such_library")
    made = compare.Worker(one, data.TINY, "cpu", 1)
    assert made.process is None
    assert made.answered == {"status": "absent", "reason": "no_such_library is not there"}
    assert made.stop() is None
