"""Many prompts by several processes: the same bytes, and no end of one of them that nobody hears of."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

import pullback as pb
from pullback import cli
from pullback.attribution.many import run, workers
from pullback.attribution.settings import Settings
from tests.attribution.test_many import LENGTHS, SETTINGS, a_model, graphs_in, some_prompts

write = run._Work._written


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process writes with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("alone")
    pb.attribute_many(*a_model(), some_prompts(), folder, **SETTINGS)
    torch.set_num_threads(threads)
    return graphs_in(folder)


def patched(monkeypatch: pytest.MonkeyPatch, before: Callable[[Path], None]) -> None:
    """Call this, in the process that does it, before a graph is written."""

    def written(work: run._Work, *arguments: Any) -> dict[str, Any]:
        before(work.folder)
        return write(work, *arguments)

    monkeypatch.setattr(run._Work, "_written", written)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_bytes_of_one_process(
    alone: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """Also where the parent's threads have worked before; each of three processes takes some of five batches."""
    seen = tmp_path / "seen"
    seen.mkdir()
    patched(monkeypatch, lambda _: (seen / f"{os.getpid()} {torch.get_num_threads()}").touch())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.ones(1000, 1000) @ torch.ones(1000, 1000)
        table = pb.attribute_many(*a_model(), some_prompts(), tmp_path / "graphs", workers=3, **SETTINGS)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert graphs_in(tmp_path / "graphs") == alone
    assert table["status"].tolist() == ["ok"] * len(LENGTHS)
    assert [path.name for path in (tmp_path / "graphs").glob("journal-*")] == ["journal-00000-of-00001.jsonl"]
    pids, counts = zip(*(path.name.split() for path in seen.iterdir()), strict=True)
    assert len(set(pids)) == 3
    assert str(os.getpid()) not in pids
    assert set(counts) == {"1"}
    assert not multiprocessing.active_children()


def test_no_more_processes_than_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    start = workers._start
    monkeypatch.setattr(workers, "_start", lambda *arguments: (started.append(1), start(*arguments)))
    prompts = some_prompts()[:2]
    for _ in range(2):
        pb.attribute_many(*a_model(), prompts, tmp_path, workers=5, **SETTINGS)
    assert len(started) == 2, "and none where all is done"
    assert len(graphs_in(tmp_path)) == 2


def test_shards_have_workers_of_their_own(tmp_path: Path) -> None:
    for folder, n in (("one", 1), ("two", 2)):
        for shard in (0, 1):
            arguments = {"num_shards": 2, "shard_id": shard, "workers": n}
            table = pb.attribute_many(*a_model(), some_prompts(), tmp_path / folder, **arguments, **SETTINGS)
        assert table["number"].tolist() == list(range(len(LENGTHS)))
    assert graphs_in(tmp_path / "two") == graphs_in(tmp_path / "one")


def test_a_prompts_failure_is_a_row_and_a_workers_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [*some_prompts(), torch.tensor([], dtype=torch.long)]
    arguments = {**SETTINGS, "attribution_targets": [pb.FeatureTarget(0, 3, 1)], "workers": 2}
    table = pb.attribute_many(*a_model(), prompts, tmp_path / "rows", **arguments)
    assert [status == "ok" for status in table["status"]] == [n > 3 for n in (*LENGTHS, 0)]

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "a name")

    patched(monkeypatch, full)
    with pytest.raises(OSError, match=r"No space left on device: 'a name'") as raised:
        pb.attribute_many(*a_model(), some_prompts(), tmp_path / "full", workers=2, **SETTINGS)
    assert raised.value.errno == errno.ENOSPC
    assert "in full" in str(raised.value.__cause__), "where it was"

    class Unportable(Exception):
        def __init__(self, _one: str, _two: str) -> None:
            super().__init__("as it was")

    def unportable(_: Path) -> None:
        raise Unportable("", "")

    patched(monkeypatch, unportable)
    with pytest.raises(RuntimeError, match="Unportable: as it was"):
        pb.attribute_many(*a_model(), some_prompts(), tmp_path / "other", workers=2, **SETTINGS)
    assert not multiprocessing.active_children()


def test_after_a_worker_was_killed_the_same_call_goes_on(
    alone: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL between two graphs of a batch; the next run has another number of workers."""

    def killed(folder: Path) -> None:
        if len(graphs_in(folder)) >= 3:
            os.kill(os.getpid(), signal.SIGKILL)

    patched(monkeypatch, killed)
    with pytest.raises(RuntimeError, match=r"exit code -9; .* goes on where it was"):
        pb.attribute_many(*a_model(), some_prompts(), tmp_path, workers=2, **SETTINGS)
    assert not multiprocessing.active_children()
    left = graphs_in(tmp_path)
    assert 3 <= len(left) < len(LENGTHS)
    assert left.items() <= alone.items()
    monkeypatch.undo()
    table = pb.attribute_many(*a_model(), some_prompts(), tmp_path, workers=3, **SETTINGS)
    assert graphs_in(tmp_path) == alone
    assert table["status"].tolist() == ["ok"] * len(LENGTHS)


STOPPED = r"""
import os, sys, time
import pullback.attribution.many.run as run
from tests.attribution.test_many import SETTINGS, a_model, some_prompts
write = run._Work._written
def slowly(*arguments):
    os.write(1, f"working {os.getpid()}\n".encode())  # in one piece, which a print need not be
    time.sleep(0.1)
    return write(*arguments)
run._Work._written = slowly
run.attribute_many(*a_model(), some_prompts() * 100, sys.argv[1], workers=2, **SETTINGS)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_a_run_that_is_stopped(tmp_path: Path, how: signal.Signals) -> None:
    """By Ctrl-C, which all of a terminal's processes get, or by a signal that only the parent gets."""
    command = [sys.executable, "-c", STOPPED, str(tmp_path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert child.stdout is not None
    pids: set[int] = set()
    while len(pids) < 2:
        said = child.stdout.readline()
        assert said, "it has ended"
        if said.startswith("working"):
            pids.add(int(said.split()[1]))
    if how == signal.SIGINT:
        os.killpg(child.pid, how)
    else:
        os.kill(child.pid, how)
    _, errors = child.communicate(timeout=20)  # ends when no process holds the pipes any more
    assert child.returncode == -how
    assert errors.count("Traceback") == (how == signal.SIGINT), "the parent's, and no worker's"
    deadline = time.monotonic() + 10
    while any(map(running, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not list(tmp_path.glob(".*.tmp")), "no file was left half written"


def running(pid: int) -> bool:
    """Nobody may wait here for a process whose parent is gone, so that it stays as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_where_processes_cannot_share_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lens, sets = a_model()
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        pb.attribute_many(lens, sets, some_prompts(), tmp_path, workers=0)
    with pytest.raises(ValueError, match=r"engine 'linear'.*run shards \(num_shards, shard_id\)"):
        pb.attribute_many(lens, sets, some_prompts(), tmp_path, workers=2, engine="autograd")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        with pytest.raises(ValueError, match="safe on Linux only"):
            workers.must_share(lens, Settings(), 2)
        workers.must_share(lens, Settings(), 1)
    elsewhere = deepcopy(lens.model).to("meta")  # built models are shared by the tests
    with pytest.raises(ValueError, match="a model on a CPU, and this one is on meta"):
        pb.attribute_many(elsewhere, sets, some_prompts(), tmp_path, workers=2)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "graphs"
    prompts.write_text("the capital of texas is\ndallas is in\n")
    assert cli.main(["graph", "tiny-mix", "--prompts", str(prompts), "--out", str(out), "--workers", "2"]) == 0
    assert "2 prompts, 0 without a graph" in capsys.readouterr().out
    assert cli.main(["graph", "tiny-mix", "dallas", "--out", str(tmp_path / "g.html"), "--workers", "2"]) == 2
    assert "--workers are for --prompts FILE" in capsys.readouterr().err
