"""Prompts of the studies, in the words of tiny-mix and of a tokenizer that has few of them."""

from __future__ import annotations

import random

import pytest
import torch

import pullback as pb
from pullback.lens import Lens
from pullback.studies import BEHAVIOURS, split
from pullback.studies.behaviours import open_behaviour
from tests import models


@pytest.fixture(scope="module")
def lens() -> Lens:
    return pb.as_lens(pb.zoo.load("tiny-mix"))


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_tiny_mix_answers_what_it_is_asked(name: str, lens: Lens) -> None:
    parts = split(open_behaviour(name, lens), lens.d_vocab, 48)
    margins = parts.test.margins(lens.logits(parts.test.tokens))
    assert float((margins > 0).float().mean()) >= 0.95
    torch.testing.assert_close(parts.test.wanted.sum(1), torch.zeros(len(parts.test)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_no_prompt_is_in_two_parts(name: str, lens: Lens) -> None:
    parts = split(open_behaviour(name, lens), lens.d_vocab, 32)
    rows = [tuple(p.row(n).tolist()) for p in (parts.choose, parts.size, parts.test) for n in range(len(p))]
    assert len(rows) == len(set(rows))
    assert len(parts.test) >= 32
    assert set(parts.test.keys) <= set(parts.choose.keys), "every tested key has prompts to choose on"


def test_padding_changes_no_margin(lens: Lens) -> None:
    test = split(open_behaviour("induction", lens), lens.d_vocab, 8).test
    padded = test.margins(lens.logits(test.tokens))
    for n in range(8):
        alone = lens.logits(test.row(n)[None])[0, -1]
        torch.testing.assert_close(padded[n], alone @ test.wanted[n], atol=1e-4, rtol=1e-4)


def test_the_closer_that_is_asked_for_is_the_right_one(lens: Lens) -> None:
    brackets = open_behaviour("brackets", lens)
    rng = random.Random(1)
    for key in ")]" * 20:
        open_now: list[str] = []
        for token in lens.to_str_tokens(torch.tensor(brackets.draw(key, rng).ids))[1:]:
            if token.strip() in "([":
                open_now.append(token.strip())
            else:
                assert "([".index(open_now.pop()) == ")]".index(token.strip())
        assert "([".index(open_now[-1]) == ")]".index(key)


@pytest.mark.parametrize(("name", "why"), [("greater-than", "17 and 32"), ("ioi", "words"), ("induction", "16")])
def test_a_tokenizer_without_the_words_is_refused(name: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        open_behaviour(name, pb.as_lens(models.gpt2(dtype=torch.float32)))


def test_an_unknown_study_and_a_model_without_a_tokenizer_are_refused(lens: Lens) -> None:
    with pytest.raises(ValueError, match="there are the studies greater-than"):
        open_behaviour("sums", lens)
    with pytest.raises(ValueError, match="tokenizer"):
        open_behaviour("brackets", pb.as_lens(pb.zoo.load("exact")))
