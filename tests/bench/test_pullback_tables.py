"""The benchmark of pullbacks runs, and refuses to compare what disagrees."""

from __future__ import annotations

import pytest
import torch

from bench import pullback_tables


def test_ours_and_the_loops_agree() -> None:
    figures = pullback_tables.measure(3, 16, 64, 8, 2, 5)
    assert figures["sources"] == 128
    assert figures["largest_difference"] < 1e-5
    assert figures["times_faster_than_strided"] == pytest.approx(
        figures["strided_loop_ms"] / figures["pullback_ms"], rel=1e-6
    )


def test_a_wrong_pullback_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = pullback_tables.pb.pullback

    def wrong(*arguments: object, **options: object) -> object:
        found = right(*arguments, **options)
        return found if found.ids is None else type(found)(found.targets, found.source, [], found.values + 1, found.ids)

    monkeypatch.setattr(pullback_tables.pb, "pullback", wrong, raising=False)
    with pytest.raises(ValueError, match="the two ways disagree"):
        pullback_tables.measure(3, 16, 64, 8, 2, 5)
    assert torch.get_num_threads() == 1
