"""The examples of docs/PULLBACKS.md run as shown, and its figures are those of the benchmark."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "PULLBACKS.md").read_text()


def test_the_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for example in re.findall(r"```python\n(.*?)```", PAGE, flags=re.S):
        exec(compile(example, "PULLBACKS.md", "exec"), names)
    said = capsys.readouterr().out
    assert "1_524: 'austin' +" in said
    assert re.findall(r"  0_18[678]: '(\w+)' ", said) == ["dallas", "houston", "lubbock"]
    read = names["read"].to_pandas(3)  # pyright: ignore[reportAttributeAccessIssue]
    assert set(read.source) == {186, 187, 188}
    assert set(read.pos) == {7}


def test_the_figures_are_those_of_the_benchmark() -> None:
    files = re.findall(r"\(\.\./(bench/results/[^)]*)\)", PAGE)
    figures = json.loads((ROOT / files[0]).read_text())
    for name in ("strided_loop_ms", "contiguous_loop_ms", "pullback_ms", "product_ms"):
        assert f"| {figures[name]:.1f} |" in PAGE
    strided, contiguous = figures["times_faster_than_strided"], figures["times_faster_than_contiguous"]
    assert f"{strided:.0f} and {contiguous:.1f} times" in PAGE
    assert f"{figures['product_gflops']:.0f} GFLOP/s" in PAGE
    assert f"{figures['memory_mib']:.0f} MiB" in PAGE
