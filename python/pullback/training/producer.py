"""A background thread that works ahead of its consumer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.05
_END = object()


class Prefetched(Iterator[T], Generic[T]):
    """What a generator yields, in its order, made up to `depth` items ahead in a thread of its own.

    An exception inside the generator, KeyboardInterrupt included, is raised where the item would have come. `close`
    (or the end of a with-block) stops the thread within one item, and waits for it.

    Args:
        make: returns the generator; called in the thread.
        depth: items that may wait; one more may be in the making.
    """

    def __init__(self, make: Callable[[], Generator[T, None, None]], depth: int) -> None:
        if depth < 1:
            raise ValueError(f"Prefetched: depth must be at least 1, got {depth}")
        self._queue: queue.Queue[Any] = queue.Queue(depth)
        self._stop = threading.Event()
        self._ended = False
        # A daemon: a model that hangs must not keep the interpreter from ending.
        self._thread = threading.Thread(target=self._run, args=(make,), name="pullback-producer", daemon=True)
        self._thread.start()

    def __next__(self) -> T:
        while not self._ended:
            try:
                item, error = self._queue.get(timeout=POLL_SECONDS)
            except queue.Empty:
                # The thread puts a last word into the queue whatever happens to it, unless it is told to stop.
                self._ended = self._stop.is_set()
                continue
            if error is not None:
                self.close()
                raise error
            if item is _END:
                self.close()
                break
            return item
        raise StopIteration

    def close(self) -> None:
        """Stop the thread and wait for it; what it has made is dropped. May be called twice."""
        self._ended = True
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> Prefetched[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, make: Callable[[], Generator[T, None, None]]) -> None:
        try:
            items = make()
            try:
                for item in items:
                    if not self._put(item, None):
                        return
            finally:
                items.close()
            self._put(_END, None)
        except BaseException as error:
            self._put(None, error)

    def _put(self, item: Any, error: BaseException | None) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put((item, error), timeout=POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False
