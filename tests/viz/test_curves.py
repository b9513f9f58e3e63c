"""The picture of faithfulness curves."""

from __future__ import annotations

from pathlib import Path

import pytest

from pullback.viz import curves

CURVE = {
    "sizes": [0.01, 0.1, 1.0],
    "n_nodes": [1, 10, 100],
    "faithfulness": [0.1, 0.8, 1.0],
    "completeness": [1, 0.3, 0],
}


def content(*names: str) -> dict:
    return {
        "prompt": "that costs $5 and $6",
        "curves": {name: {"signed": CURVE, "absolute": CURVE} for name in names},
        "areas": {name: {"cpr": 0.9, "cmd": 0.1} for name in names},
    }


def test_a_picture_is_drawn_the_same_every_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    curves.draw(content("graph", "eap"), tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text()
    for word in ("graph (CPR 0.90)", "eap (CMD 0.10)", "everything but the circuit, best nodes by signed score"):
        assert f"<!-- {word} -->" in drawn
    for name in ("a.png", "b.png"):
        curves.draw(content("graph", "eap"), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    curves.draw(content(*"abcdefgh"), tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 10_000


def test_what_cannot_be_drawn_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no curve to draw"):
        curves.draw(content(), tmp_path / "x.png")
    monkeypatch.setattr(curves, "can_draw", lambda: False)
    with pytest.raises(ValueError, match="need matplotlib"):
        curves.draw(content("graph"), tmp_path / "x.png")
