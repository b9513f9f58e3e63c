"""The examples of docs/PATHS.md run as shown, and say what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[3] / "docs" / "PATHS.md").read_text(encoding="utf-8")


def test_the_examples_run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for example in re.findall(r"```python\n(.*?)```", PAGE, flags=re.S):
        exec(compile(example, "PATHS.md", "exec"), names)
    said = capsys.readouterr().out
    shown = re.findall(r"^\+\S+: .*$", PAGE, flags=re.M)
    assert len(shown) == 3
    for line, expected in zip(said.splitlines(), shown, strict=False):
        contribution, nodes = expected.split(": ")
        assert line.split(": ")[1] == nodes
        assert float(line.split(": ")[0]) == pytest.approx(float(contribution), rel=0.01)
    assert {path.name for path in tmp_path.iterdir()} == {"paths.html", "paths.json", "from_words.html"}
