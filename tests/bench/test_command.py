"""`python -m bench`, end to end and with wrong arguments."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import __main__ as command
from bench import rows
from bench.ops import OPS
from bench.ops.decode import Decoder
from bench.registry import Run

ROOT = Path(__file__).parents[2]


def test_a_tiny_run_end_to_end(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "bench", "--tiny", "--threads", "1", "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    (path,) = tmp_path.iterdir()
    assert run.stdout.strip() == str(path)
    header, found = rows.read(path)
    assert header["suite"] == "tiny"
    assert header["threads"] == 1
    assert {row["op"] for row in found} == {*OPS, "step"}
    # Everything of ours that is here is right, and so is everything of torch.
    for op in (*OPS, "step"):
        done = {row["provider"] for row in found if row["op"] == op and row["status"] == "ok"}
        assert any(name.startswith("pullback") for name in done), op
        assert any(name.startswith(("torch", "circuit-tracer")) for name in done), op
    # Nobody vanishes: what is not installed is named.
    for op in ("topk_encode", "decode", "step"):
        assert any(row["op"] == op and row["provider"] == "sparsify" for row in found)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--budget", "-1"], "--budget must be positive seconds"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--ops", "nonsense"], "no op 'nonsense'; choose from topk_encode"),
        (["--suite", "nightly"], "invalid choice: 'nightly'"),
    ],
)
def test_wrong_arguments_give_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_a_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--device", "cuda"])
    assert "finds no CUDA device" in capsys.readouterr().err


def test_strict_refuses_a_busy_machine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command.os, "getloadavg", lambda: (99.0, 99.0, 99.0))
    with pytest.raises(SystemExit):
        command.main(["--tiny", "--strict", "--threads", str(torch.get_num_threads())])
    assert "the machine is busy: load 99.0" in capsys.readouterr().err


def test_a_broken_device_does_not_lose_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(*_: object) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    broken = replace(OPS["decode"], name="update", inputs=breaks)
    monkeypatch.setattr(command, "OPS", {"decode": OPS["decode"], "update": broken})
    threads = str(torch.get_num_threads())
    assert command.main(["--tiny", "--ops", "decode", "update", "--threads", threads, "--out", str(tmp_path)]) == 1
    assert "illegal memory access" in capsys.readouterr().err
    _, found = rows.read(next(tmp_path.iterdir()))
    assert {row["op"] for row in found} == {"decode"}


@pytest.mark.parametrize(("liar", "code"), [("pullback", 1), ("torch dense", 0)])
def test_only_what_is_ours_decides_the_exit_code(
    liar: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lies(inputs: Decoder) -> Run:
        return lambda: torch.zeros(len(inputs.values), inputs.W_dec.shape[1])

    op = OPS["decode"]
    providers = tuple(replace(one, build=lies) if one.name == liar else one for one in op.providers)
    monkeypatch.setattr(command, "OPS", {"decode": replace(op, providers=providers)})
    threads = str(torch.get_num_threads())
    assert command.main(["--tiny", "--ops", "decode", "--threads", threads, "--out", str(tmp_path)]) == code
    assert f"decode, {liar}: wrong" in capsys.readouterr().err
