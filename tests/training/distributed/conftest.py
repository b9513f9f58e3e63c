"""Two processes that stay, with gloo between them: what a test asks of them, both do at the same time."""

from __future__ import annotations

import os
import socket
import traceback

import pytest
import torch.multiprocessing as mp


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def _serve(rank, size, port, pipe):
    import torch

    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    import pullback.lens
    from pullback.training.distributed import join

    pullback.lens.as_lens = lambda model: model
    join()
    while (asked := pipe.recv()) is not None:
        function, args, kwargs = asked
        try:
            pipe.send((function(*args, **kwargs), None))
        except BaseException as error:
            pipe.send((None, (type(error).__name__, str(error), traceback.format_exc())))


class Failed(Exception):
    """What every process raised: [(type, sentence, traceback), ...]."""

    def __init__(self, errors):
        super().__init__("\n".join(error[2] if error else "nothing" for error in errors))
        self.errors = errors


class Processes:
    def __init__(self, size):
        context, port = mp.get_context("spawn"), free_port()
        self.pipes, self.processes = [], []
        for rank in range(size):
            here, there = context.Pipe()
            self.pipes.append(here)
            self.processes.append(context.Process(target=_serve, args=(rank, size, port, there), daemon=True))
            self.processes[-1].start()

    def __call__(self, function, *args, **kwargs):
        """The results of a function of a module of tests, in order of the processes."""
        for pipe in self.pipes:
            pipe.send((function, args, kwargs))
        answers = []
        for pipe in self.pipes:
            assert pipe.poll(60), "a process hangs"
            answers.append(pipe.recv())
        if any(error for _, error in answers):
            raise Failed([error for _, error in answers])
        return [result for result, _ in answers]

    def close(self):
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(5)
            process.kill()


@pytest.fixture(scope="session")
def two():
    processes = Processes(2)
    yield processes
    processes.close()
