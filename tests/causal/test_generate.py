"""Generation is intervention on the text so far, again and again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import pullback as pb
from pullback.causal.generate import _Choice
from pullback.lens import as_lens
from tests import models
from tests.causal.exact import prompts

TOKENS = prompts(1, 5, seed=4)[0]


def setting() -> tuple[Any, Any]:
    lens = as_lens(models.build("gpt2"))
    return lens, models.random_set(lens)


@pytest.mark.parametrize("freeze", ["attention", None])
def test_every_token_is_what_intervene_says_on_the_text_so_far(freeze: str | None) -> None:
    lens, sets = setting()
    wanted = [(1, slice(-2, None), 7, 6.0), (0, slice(1, 3), 2, 4.0), (2, slice(5, None), 9, 5.0), (0, -1, 4, 1.0)]
    ours = pb.generate(lens, sets, TOKENS, wanted, max_new_tokens=4, stop_at_eos=False, freeze=freeze)
    text = TOKENS
    for step, logits in enumerate(ours.logits):
        n = len(text)
        by_hand = [(1, p, 7, 6.0) for p in range(3, n)] + [(0, p, 2, 4.0) for p in (1, 2)]
        by_hand += [(2, p, 9, 5.0) for p in range(5, n)] + [(0, 4, 4, 1.0)]
        assert torch.equal(logits, pb.intervene(lens, sets, text, by_hand, freeze=freeze)[-1]), step
        text = torch.cat([text, logits.argmax()[None]])
    assert torch.equal(ours.tokens, text)
    assert torch.equal(ours.new_tokens, text[5:])
    decode = lens.model.tokenizer.decode
    assert decode(text[:5]) + ours.text == decode(text), "words stand apart"


def test_without_interventions_it_is_the_model() -> None:
    lens, sets = setting()
    ours = pb.generate(lens, sets, TOKENS, max_new_tokens=3, stop_at_eos=False)
    for n in range(3):
        assert torch.allclose(ours.logits[n], lens.logits(ours.tokens[None, : 5 + n])[0, -1], atol=1e-10)


def test_it_stops_at_the_end_of_text_and_the_context() -> None:
    lens, sets = setting()
    free = pb.generate(lens, sets, TOKENS, max_new_tokens=models.N_CTX - 5 + 1, stop_at_eos=False)
    assert len(free.tokens) == models.N_CTX + 1, "the last token is written, not read"
    end = int(free.new_tokens[2])
    first = free.new_tokens.tolist().index(end)
    assert torch.equal(
        pb.generate(lens, sets, TOKENS, max_new_tokens=6, eos_token_id=end).tokens, free.tokens[: 5 + first + 1]
    )
    lens.model.tokenizer.eos_token, before = lens.to_str_tokens(torch.tensor([end]))[0], lens.model.tokenizer.eos_token
    try:
        assert len(pb.generate(lens, sets, TOKENS, max_new_tokens=6).new_tokens) == first + 1
    finally:
        lens.model.tokenizer.eos_token = before


def test_draws_follow_their_seed() -> None:
    lens, sets = setting()

    def drawn(**options: Any) -> list[int]:
        return pb.generate(lens, sets, TOKENS, max_new_tokens=4, do_sample=True, **options).new_tokens.tolist()

    assert drawn(seed=3, temperature=3.0) == drawn(seed=np.int64(3), temperature=3.0)
    assert drawn(seed=3, temperature=3.0) == drawn(generator=torch.Generator().manual_seed(3), temperature=3.0)
    assert len({tuple(drawn(seed=s, temperature=3.0)) for s in range(4)}) > 1
    greedy = pb.generate(lens, sets, TOKENS, max_new_tokens=4).new_tokens.tolist()
    assert drawn(seed=5, top_k=1) == drawn(seed=6, top_p=1e-9) == greedy


def test_the_distribution_drawn_from() -> None:
    logits = torch.tensor([0.0, 3.0, 1.0, 2.0, -1.0])

    def p(temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> torch.Tensor:
        return _Choice(True, temperature, top_k, top_p, None).distribution(logits)

    assert torch.allclose(p(), torch.softmax(logits, -1))
    assert torch.allclose(p(2.0), torch.softmax(logits / 2, -1))
    two = torch.softmax(torch.tensor([3.0, 2.0]), -1)
    assert torch.allclose(p(top_k=2), torch.tensor([0.0, two[0], 0.0, two[1], 0.0]))
    # Probabilities .636, .234, .086, .032, .012: .7 needs the second, .6 does not.
    assert (p(top_p=0.7) > 0).tolist() == [False, True, False, True, False]
    assert (p(top_p=0.6) > 0).tolist() == [False, True, False, False, False]
    assert (p(top_k=3, top_p=0.99) > 0).tolist() == [False, True, True, True, False]
    assert torch.allclose(p(top_k=99), torch.softmax(logits, -1))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_new_tokens": 0}, r"max_new_tokens must be in 1\.\.8 after 5 tokens \(the context of .* is 12\), got 0"),
        ({"max_new_tokens": 9}, r"max_new_tokens must be in 1\.\.8"),
        ({"temperature": 0.0}, r"temperature must be above 0 \(do_sample=False is greedy\), got 0.0"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 1.5}, r"top_p must lie in \(0, 1\]"),
        ({"temperature": 0.5}, "temperature would change nothing: .* do_sample=True draws"),
        ({"top_k": 3, "seed": 1}, "top_k, seed or generator would change nothing"),
        ({"seed": 1, "generator": torch.Generator()}, "a seed or a generator, not both"),
        ({"interventions": [(0, 5, 1, 1.0)]}, "position 5 is outside the prompt's 5 tokens"),
        ({"interventions": [(0, slice(9, None), 99, 1.0)]}, "feature 99 is out of range"),
    ],
)
def test_what_cannot_be_generated_is_said(options: Any, sentence: str) -> None:
    lens, sets = setting()
    with pytest.raises(ValueError, match=sentence):
        pb.generate(lens, sets, TOKENS, **{"max_new_tokens": 3} | options)
