"""The pictures of what features read and say."""

from __future__ import annotations

from pathlib import Path

import pytest

from pullback.viz import tokens

ENDS = {"top": [(" $a", 2.0), ("\n", 1.0)], "bottom": [("c", -3.0), ("d", -0.5)]}


def test_bars_are_drawn_the_same_every_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "b.png", "c.png"):
        tokens.draw_bars({"what": "logit effects", "features": {"2_17": ENDS, "2_18": ENDS}}, tmp_path / name)
    drawn = (tmp_path / "a.svg").read_text()
    for word in ("logit effects", "2_17", "2_18", r"\n"):
        assert f"<!-- {word} -->" in drawn
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "c.png").read_bytes()


def test_curves_over_chosen_tokens(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    curves = {"de-embedding": [0.1, 0.9, 0.2], "logit effects": [5.0, 5.0, 5.0]}
    for scaled in (False, True):
        tokens.draw_curves(curves, ["01", "02", "03"], tmp_path / f"{scaled}.svg", scaled=scaled)
    drawn = (tmp_path / "True.svg").read_text()
    for word in ("de-embedding", "logit effects", "02", "effect, from its least to its largest"):
        assert f"<!-- {word} -->" in drawn


def test_what_cannot_be_drawn_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="not one value for each of 2 tokens: a"):
        tokens.draw_curves({"a": [1.0]}, ["x", "y"], tmp_path / "a.svg")
    monkeypatch.setattr(tokens, "can_draw", lambda: True)
    with pytest.raises(ValueError, match="nothing to draw"):
        tokens.draw_bars({"what": "", "features": {}}, tmp_path / "a.svg")
    monkeypatch.setattr(tokens, "can_draw", lambda: False)
    with pytest.raises(ValueError, match="need matplotlib"):
        tokens.draw_curves({"a": [1.0]}, ["x"], tmp_path / "a.svg")
