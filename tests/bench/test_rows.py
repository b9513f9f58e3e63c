"""Results files: what is written can be read, and what is not one of ours is refused with its line."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import environment, rows, run
from bench.roofline import Ceilings

from .made_up import RUN, timed


def test_what_is_written_is_read(tmp_path: Path) -> None:
    lines = [RUN, timed("pullback", 2.0), timed("torch", 3.0) | {"cpu_ms": None}]
    path = tmp_path / "machine" / "day-quick.jsonl"
    rows.write(path, lines)
    assert rows.read(path) == (RUN, lines[1:])
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"ms": "3"}, "'ms' must be float"),
        ({"status": "fine"}, "status must be one of"),
        ({"colour": "red"}, "no field 'colour'"),
        ({"kind": "thing"}, 'kind must be "run" or "row"'),
        ({"rounds": True}, "'rounds' must be int"),
    ],
)
def test_a_wrong_row_is_not_written(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        rows.write(tmp_path / "a.jsonl", [RUN, timed("torch", 3.0) | change])
    assert not list(tmp_path.iterdir())


def test_a_missing_field_is_named() -> None:
    row = timed("torch", 3.0)
    del row["others"]
    with pytest.raises(ValueError, match="a row needs 'others'"):
        rows.check(row)


def test_a_foreign_file_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(RUN) + "\nnonsense\n")
    with pytest.raises(ValueError, match="line 2"):
        rows.read(path)
    path.write_text(json.dumps(timed("torch", 3.0)) + "\n")
    with pytest.raises(ValueError, match="must describe the run"):
        rows.read(path)
    path.write_text(json.dumps(RUN | {"schema": 99}) + "\n")
    with pytest.raises(ValueError, match="schema 99"):
        rows.read(path)


def test_machines_have_short_names() -> None:
    assert environment.slug("NVIDIA H200") == "nvidia-h200"
    assert environment.slug(environment.cpu_model()).strip("-")


def test_reasons_do_not_tell_where_things_lie() -> None:
    assert environment.without_paths("no x in /home/someone/lib/y.py, but 3/4 of it") == "no x in y.py, but 3/4 of it"


def test_neighbours_count_only_others() -> None:
    look = environment.Neighbours()
    until = time.perf_counter() + 0.3  # the system counts in hundredths of a second
    while time.perf_counter() < until:
        sum(range(10_000))
    assert 0 <= look.cores() <= environment.cores() * 1.5
    assert look.cores(own_elsewhere=1e9) == 0


def test_disturbed_is_who_shares_the_cores_we_use() -> None:
    cores = environment.cores()
    everything = run.Settings(torch.device("cpu"), Ceilings(1, 1, 1), threads=cores)
    assert everything.disturbed(others=0.6)
    assert not everything.disturbed(others=0.4)
    assert not run.Settings(torch.device("cuda"), Ceilings(1, 1, 1), threads=cores).disturbed(others=cores - 1)
