"""All processes of a run: how they meet, agree, and stop.

An exception in one process must not leave the others waiting. There are two ways to that:

- Where no process waits for another, `together` collects what each has met, and all raise the same.
- Elsewhere the process that fails says why where the others can read it, and closes its connections; they find these
  closed, read the sentence and raise it. A process that was killed says nothing, and the others say that.

Ctrl-C and SIGTERM are answered between two steps, by all together.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pullback.training.distributed.peers import Peers
from pullback.training.step import TrainingDiverged

# Nobody waits longer than this for another; a checkpoint of one process has to be written within it.
TIMEOUT = timedelta(minutes=30)
GOING, STOPPED, FAILED = range(3)
RAISED_ALIKE = {
    kind.__name__: kind for kind in (TrainingDiverged, ValueError, OSError, MemoryError, NotImplementedError)
}


def join() -> None:
    """Let this process, started by `torchrun`, meet the others, each with a GPU of its own where there are any."""
    if dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())


class World(Peers):
    """All processes of `torch.distributed`. Use it as a context, in which training stops together.

    Args:
        device: where the tensors lie that are exchanged.
    """

    _count = 0

    def __init__(self, device: torch.device) -> None:
        join()
        self._backend = "gloo" if device.type == "cpu" else None
        ranks = list(range(dist.get_world_size()))
        super().__init__(ranks, dist.new_group(ranks, timeout=TIMEOUT, backend=self._backend))
        # Few small things, which no GPU is to wait for.
        self._control: Any = dist.new_group(ranks, backend="gloo", timeout=TIMEOUT)
        self._store = dist.distributed_c10d._get_default_store()
        World._count += 1
        self._key = f"pullback/failed/{World._count}"
        self._stop = False
        self._split: list[Peers] = []

    @property
    def control(self) -> Any:
        """The group for things that lie in main memory."""
        return self._control

    def split(self, groups: Sequence[Sequence[int]]) -> Peers:
        """The one of these groups of ranks that this process belongs to."""
        every = [dist.new_group(list(ranks), timeout=TIMEOUT, backend=self._backend) for ranks in groups]
        mine = next(i for i, ranks in enumerate(groups) if self.rank in ranks)
        self._split.append(Peers(groups[mine], every[mine]))
        return self._split[-1]

    def objects(self, own: Any) -> list[Any]:
        """Anything that can be pickled, in order of the processes."""
        every: list[Any] = [None] * self.size
        dist.all_gather_object(every, own, group=self._control)
        return every

    @contextmanager
    def together(self, kinds: type[BaseException] | tuple[type[BaseException], ...] = Exception) -> Iterator[None]:
        """A stretch in which each process works alone; behind it all go on, or all raise what the first one met.

        Args:
            kinds: what is collected; the rest passes through.

        Raises:
            KeyboardInterrupt: somebody was told to stop.
        """
        own = None
        try:
            yield
        except kinds as error:
            own = error
        except KeyboardInterrupt:
            self._stop = True
        state = torch.tensor(FAILED if own is not None else STOPPED if self._stop else GOING)
        dist.all_reduce(state, dist.ReduceOp.MAX, group=self._control)
        if int(state) == GOING:
            return
        said = self.objects(None if own is None else (type(own).__name__, str(own)))
        failed = [rank for rank in range(self.size) if said[rank] is not None]
        if not failed:
            raise KeyboardInterrupt
        if own is not None and failed[0] == self.rank:
            raise own
        kind, sentence = said[failed[0]]
        raise RAISED_ALIKE.get(kind, RuntimeError)(sentence)

    def __enter__(self) -> World:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():  # nobody else may
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._asked_to_stop)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        try:
            if error is None:
                dist.barrier(group=self._control)  # who is done first does not hang up on the others
            elif isinstance(error, Exception):
                self._tell(error)
        finally:
            self._hang_up()

    def _hang_up(self) -> None:
        """Close all connections; gloo does when nothing refers to its group any more."""
        groups = [self._control]
        self._control = None
        for peers in [self, *self._split]:
            groups.append(peers.group)
            peers.group = None
        for group in groups:
            with suppress(Exception):
                dist.destroy_process_group(group)

    def _asked_to_stop(self, number: int, frame: Any) -> None:  # noqa: ARG002
        if self._stop:  # twice: at once
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._stop = True

    def _tell(self, error: Exception) -> None:
        """Say what happened here, or raise what has been said elsewhere."""
        if not _connection_lost(error):
            with suppress(Exception):  # who keeps the store may be gone
                self._store.compare_set(self._key, "", f"process {self.rank} stopped: {error}")
            return
        said = "another process is gone, without a word; look for it in the log of the machine"
        with suppress(Exception):
            self._store.wait([self._key], timedelta(seconds=2))
            said = self._store.get(self._key).decode()
        raise RuntimeError(f"{said}. The last checkpoint is intact: start again with resume=True") from error


def _connection_lost(error: Exception) -> bool:
    said = str(error)
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and ("gloo" in said or "NCCL" in said))
