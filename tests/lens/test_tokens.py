"""Prompts become the tokens the user meant, or a sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pullback.lens import as_lens
from tests import models

BOS = models.VOCAB - 1


def test_strings_get_bos_by_the_models_own_default() -> None:
    model = models.gpt2(seed=3)
    lens = as_lens(model)
    assert lens.to_tokens("w3 w1 w4").tolist() == [BOS, 3, 1, 4]
    model.cfg.default_prepend_bos = False
    assert lens.to_tokens("w3 w1 w4").tolist() == [3, 1, 4]


@pytest.mark.parametrize(
    "given",
    [[3, 1, 4], (3, 1, 4), torch.tensor([3, 1, 4]), torch.tensor([[3, 1, 4]], dtype=torch.int32), np.array([3, 1, 4])],
)
def test_ids_are_taken_as_given(given: Any) -> None:
    tokens = as_lens(models.build("gpt2")).to_tokens(given)
    assert tokens.tolist() == [3, 1, 4]
    assert tokens.dtype == torch.long


@pytest.mark.parametrize(
    "empty", ["", "  \n", [], torch.empty(0, dtype=torch.long), torch.empty(1, 0, dtype=torch.long)]
)
def test_empty_prompts(empty: Any) -> None:
    with pytest.raises(ValueError, match="prompt is empty"):
        as_lens(models.build("gpt2")).to_tokens(empty)


def test_too_long_is_refused_and_never_cut() -> None:
    lens = as_lens(models.build("gpt2"))
    assert len(lens.to_tokens([1] * models.N_CTX)) == models.N_CTX
    with pytest.raises(ValueError, match="prompt has 13 tokens, but .* reads at most 12: shorten it"):
        lens.to_tokens([1] * 13)
    with pytest.raises(ValueError, match="prompt has 31 tokens, but .* reads at most 12"):
        lens.to_tokens(" ".join(["w1"] * 30))


@pytest.mark.parametrize(("ids", "bad"), [([0, 50], 50), ([-1, 0], -1), ([10**9], 10**9)])
def test_ids_outside_the_vocabulary(ids: list[int], bad: int) -> None:
    with pytest.raises(ValueError, match=rf"token id {bad} is outside the vocabulary 0\.\.49"):
        as_lens(models.build("gpt2")).to_tokens(ids)


@pytest.mark.parametrize(
    "given",
    [
        torch.ones(2, 3, dtype=torch.long),
        torch.tensor(3),
        torch.tensor([1.0, 2.0]),
        torch.tensor([True, False]),
        torch.tensor([1j]),
        ["w1", "w2"],
        [[1, 2], [3]],
        None,
        object(),
    ],
)
def test_other_shapes_and_types(given: Any) -> None:
    with pytest.raises(ValueError, match="prompt must be a string or one row of token ids"):
        as_lens(models.build("gpt2")).to_tokens(given)


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} {% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "w{{ ['user', 'assistant'].index(m.role) }} {{ m.content }}{% if not loop.last %} w9{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} w9 w1{% endif %}"
)


def test_messages_of_a_chat_go_through_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = as_lens(models.gpt2(seed=4))
    asked = {"role": "user", "content": "w3 <bos>"}
    with pytest.raises(ValueError, match="has no chat template: give the prompt as a string or token ids"):
        lens.to_tokens([asked])
    monkeypatch.setattr(lens.model.tokenizer, "chat_template", TEMPLATE)
    assert lens.to_tokens([asked]).tolist() == [BOS, 0, 3, BOS, 9, 1], "specials as given, no second BOS"
    begun = [asked, {"role": "assistant", "content": "w5"}]
    assert lens.to_tokens(begun).tolist() == [BOS, 0, 3, BOS, 9, 1, 5], "an answer that is begun goes on"
    with pytest.raises(ValueError, match="refuses these messages: no tools"):
        lens.to_tokens([{"role": "tool", "content": "w1"}])
    with pytest.raises(ValueError, match="a message of a chat is"):
        lens.to_tokens([asked, {"role": "user"}])


def test_without_a_tokenizer() -> None:
    lens = as_lens(models.build("LN-mha-standard-plain"))
    with pytest.raises(ValueError, match="no tokenizer: give token ids, or set one with model.set_tokenizer"):
        lens.to_tokens("w1")
    assert lens.to_str_tokens(torch.tensor([3, 4])) == ["<3>", "<4>"]
    assert as_lens(models.build("gpt2")).to_str_tokens(torch.tensor([3, BOS])) == ["w3", "<bos>"]
