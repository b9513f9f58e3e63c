"""The benchmark of graphs, end to end on a small case, without circuit-tracer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from bench.graphs import __main__ as command
from bench.graphs.cases import CASES, dictionaries
from bench.interop.models import random_model
from pullback.lens import as_lens


def test_so_many_features_are_active() -> None:
    case = CASES["smoke"]
    lens = as_lens(random_model(case.config))
    prompt = torch.arange(case.shape["T"])
    sets = dictionaries(lens, prompt, case)
    for layer, (x, _) in lens.mlp_io(prompt[None]).items():
        assert sets.encode(layer, x[0]).nnz == case.shape["k"] * case.shape["T"]


def test_a_graph_of_each_kind_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, absent = tmp_path / "graphs.json", tmp_path / "python"
    given = ["bench.graphs", "--cases", "smoke", "--rounds", "1", "--python", str(absent), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", given)
    assert command.main() == 0
    (case,) = json.loads(out.read_text())["cases"]
    assert set(case["rows"]) == {"float32", "bfloat16"}
    assert all(row["cpu"] > 0 for row in case["rows"].values())
    assert case["rows"]["float32"]["check"] < 1e-5 < case["rows"]["bfloat16"]["check"]
    assert case["graphs"]["bfloat16_rank_correlation"] > 0.99


def test_ratios_are_of_the_same_case() -> None:
    row = {"cpu": 2.0, "peak_mb": 10.0, "all_cpu": [2.0]}
    rows = {"float32": row, "circuit-tracer": row | {"cpu": 30.0, "peak_mb": 40.0}}
    said = command.in_words({"case": "x", "shape": {"T": 8}, "rows": rows, "graphs": {"same": 1.0}})
    assert "15.0x as fast, 0.25 of the memory" in said
