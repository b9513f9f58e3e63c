"""The examples of docs/ATTENTION.md run as shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


def test_the_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "ATTENTION.md").read_text()
    names: dict[str, object] = {}
    for example in re.findall(r"```python\n(.*?)```", page, flags=re.S):
        exec(compile(example, "ATTENTION.md", "exec"), names)
    said = capsys.readouterr().out
    assert "QKAttribution(layer 2, head 0: 8 -> 7" in said
    assert "Interference(share=" in said
