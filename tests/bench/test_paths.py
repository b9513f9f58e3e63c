"""The benchmark of path search runs, and refuses to compare what disagrees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import paths


def test_both_searches_find_the_same_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert paths.main(["--smoke", "--out", str(tmp_path / "lines.jsonl")]) == 0
    ours, theirs = map(json.loads, (tmp_path / "lines.jsonl").read_text().splitlines())
    assert capsys.readouterr().out.splitlines() == (tmp_path / "lines.jsonl").read_text().splitlines()
    assert (ours["provider"], theirs["provider"]) == ("pullback", "one by one")
    assert ours["times_faster"] == pytest.approx(theirs["cpu_s"] / ours["cpu_s"])
    assert "times_faster_than_measured" not in ours  # at another size


def test_another_path_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = paths.OneByOne._forward
    monkeypatch.setattr(paths.OneByOne, "_forward", lambda self, k: right(self, k) * torch.tensor(2.0))
    with pytest.raises(ValueError, match="find other paths"):
        paths.measure(paths.CASES["smoke"])
