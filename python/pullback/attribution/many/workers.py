"""Processes that share the batches of one run on a CPU, with one thread each.

They are forked, so that weights are shared and not copied, as workers of torch's `DataLoader` are. The parent hands out
one batch after the other and keeps the journal; a worker only computes, and writes graphs.
"""

from __future__ import annotations

import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Generator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn, TypeAlias, TypeVar, cast

import torch

from pullback.attribution.settings import Settings
from pullback.lens import Lens

Task = TypeVar("Task")
Result = TypeVar("Result")
Team: TypeAlias = dict[Connection, BaseProcess]  # by the parent's ends of pipes
PATIENCE = 10  # seconds in which a worker may end what it cannot interrupt


def must_share(lens: Lens, settings: Settings, workers: int) -> None:
    """Raises ValueError where so many processes cannot share a run on this model."""
    if workers < 1:
        raise ValueError(f"attribute_many: workers must be at least 1, got {workers}")
    if workers == 1:
        return
    places = {str(lens.device), *(str(weight.device) for weight in lens.model.parameters())}
    if places != {"cpu"}:
        why = f"share a model on a CPU, and this one is on {', '.join(sorted(places))}"
    elif sys.platform != "linux":
        why = "are forked, which is safe on Linux only"
    elif settings.engine == "autograd":
        why = "are for engine 'linear': torch's autograd may not survive a fork"
    else:
        return
    raise ValueError(
        f"attribute_many: workers {why}; run shards (num_shards, shard_id), of which "
        "attribute_on_devices(open_pair, prompts, folder, devices) runs one on each device"
    )


def each(
    do: Callable[[Task], Result], tasks: Sequence[Task], workers: int
) -> Generator[tuple[Task, Result], None, None]:
    """Every task with what `do` makes of it: here, in order, or in `workers` processes, as they finish.

    What a worker raises is raised here and stops the others; so does RuntimeError where one is killed.
    """
    if workers == 1:
        for task in tasks:
            yield task, do(task)
        return
    waiting = list(tasks)  # taken from its end: the longest prompts first, so that all are busy until the last
    team: Team = {}
    given: dict[Connection, Task] = {}
    try:
        for _ in range(min(workers, len(waiting))):
            _start(do, team)
        for ours in team:
            given[ours] = waiting.pop()
            _told(team, ours, given[ours])
        while given:
            for ours in cast("list[Connection]", wait(list(given))):
                result, error, trace = _heard(team, ours)
                if error is not None:
                    raise error from RuntimeError(f"in a worker:\n{trace}")
                task = given.pop(ours)
                if waiting:
                    given[ours] = waiting.pop()
                    _told(team, ours, given[ours])
                yield task, result
    finally:
        _end(team)


def _start(do: Callable[[Any], Any], team: Team) -> None:
    """One more worker."""
    context = get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(do, theirs, [*team, ours]), daemon=True)
    process.start()
    theirs.close()
    team[ours] = process


def _work(do: Callable[[Any], Any], parent: Connection, of_parent: Sequence[Connection]) -> None:
    """Do one task after the other, until there is nobody to ask for more."""
    torch.set_num_threads(1)  # the threads of OpenMP are not in a forked process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    signal.signal(signal.SIGTERM, _leave)
    # A pipe ends when nobody else holds its other end: so a worker learns that its parent is gone.
    for end in of_parent:
        end.close()
    try:
        while True:
            task = parent.recv()
            try:
                answer = do(task), None, ""
            except Exception as error:
                answer = None, _portable(error), traceback.format_exc()
            parent.send(answer)
    except (EOFError, OSError):
        return


def _leave(*_: Any) -> NoReturn:
    """Unlike the signal itself, this leaves no half-written file behind."""
    raise SystemExit(0)


def _portable(error: Exception) -> Exception:
    """The error as another process can raise it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _told(team: Team, ours: Connection, task: Any) -> None:
    try:
        ours.send(task)
    except OSError:
        _died(team[ours])


def _heard(team: Team, ours: Connection) -> tuple[Any, Exception | None, str]:
    try:
        return ours.recv()
    except (EOFError, OSError):
        _died(team[ours])


def _died(process: BaseProcess) -> NoReturn:
    process.join()
    raise RuntimeError(
        f"attribute_many: a worker died with exit code {process.exitcode}; the graphs that are done stay, and the same "
        "call goes on where it was (where memory ran out: with fewer workers, or smaller prompts_at_once)"
    ) from None


def _end(team: Team) -> None:
    for ours, process in team.items():
        ours.close()
        process.terminate()
    for process in team.values():
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()
