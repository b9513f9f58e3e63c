"""The benchmark of many prompts runs, and refuses to compare what disagrees."""

from __future__ import annotations

import pytest
import torch

from bench import many


def test_both_ways_give_the_same_edges() -> None:
    figures = many.measure(4, 2, 32)
    assert figures["largest_difference"] < 1e-5
    assert figures["attribute_many_ms"] > 0
    assert figures["times_faster"] == pytest.approx(figures["copies_ms"] / figures["attribute_many_ms"])
    assert figures["threads"] == 1
    assert many.measure(4, 2, 32, threads=2)["threads"] == 2


def test_a_wrong_edge_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = many.Copies.graph
    monkeypatch.setattr(many.Copies, "graph", lambda *arguments: right(*arguments) + torch.tensor(0.01))
    with pytest.raises(ValueError, match="the two ways disagree"):
        many.measure(2, 1, 32)


def test_prompts_are_lists_repeated() -> None:
    prompts = many.prompts_of(3)
    assert all(len(prompt) == many.LENGTH and torch.equal(prompt[1:6], prompt[11:]) for prompt in prompts)
    assert len({tuple(prompt.tolist()) for prompt in prompts}) == 3
