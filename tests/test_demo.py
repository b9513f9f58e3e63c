"""The demo with the shipped transcoders: its report, its page, and what it claims."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tools import check_demo

from pullback import demo


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    demo.run(folder, shipped=True, verbose=False)
    return folder


@pytest.fixture(scope="module")
def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


def test_every_figure_holds(report: dict[str, Any]) -> None:
    assert check_demo.shortfalls(report) == []


def test_report_has_the_promised_keys(report: dict[str, Any]) -> None:
    assert {"fvu", "l0", "ce_recovered", "kl", "graph", "intervention", "interchange"} <= set(report)
    graph = {"nodes", "edges", "check_max_error", "replacement_score", "completeness_score"}
    assert graph <= set(report["graph"])
    assert {"prompt", "source_prompt", "before", "after", "expected", "flipped"} <= set(report["intervention"])
    assert {"pairs", "success_rate", "complement_rate", "same_state_rate"} <= set(report["interchange"])
    assert len(report["fvu"]) == len(report["l0"]) == 4
    assert report["ce_recovered"] >= 0.98
    assert report["kl"] <= 0.05


def test_the_story_of_the_swap(report: dict[str, Any]) -> None:
    one = report["intervention"]
    assert (one["before"], one["after"]) == ("austin", "sacramento")
    assert one["after"] == one["expected"]


def test_page_is_one_file_that_names_the_answer(out: Path) -> None:
    page = (out / "graph.html").read_text()
    assert "austin" in page
    assert "dallas" in page
    assert sorted(p.name for p in out.iterdir()) == ["graph.html", "report.json"]


def test_an_unknown_city_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not know the city 'paris'"):
        demo.run(tmp_path, city="paris", shipped=True, verbose=False)


def test_two_cities_of_one_state_are_refused(tmp_path: Path) -> None:
    """Their capital is the same: "flipped" would be reported of an answer that never changed."""
    with pytest.raises(ValueError, match="dallas and houston are of one state"):
        demo.run(tmp_path, city="dallas", source_city="houston", shipped=True, verbose=False)


def test_bounds_are_enforced() -> None:
    """The check that guards the demo must fail when a figure does."""
    bad: dict[str, Any] = {
        "fvu": [0.1, 0.3],
        "dead": [0.0, 0.0],
        "graph": {"check_max_error": 1e-7},
        "interchange": {
            "pairs": 300,
            "success_rate": 0.5,
            "complement_rate": 0.0,
            "same_state_rate": 1.0,
            "top_rate": 1.0,
            "random_rate": 0.0,
        },
        "intervention": {"flipped": False},
    }
    missed = " ".join(check_demo.shortfalls(bad))
    assert "worst FVU" in missed
    assert "state features swapped" in missed
    assert "flipped" in missed
    assert "pairs" not in missed
