"""Prompts to token ids and back, with sentences for what cannot be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pullback.lens.adapter import Lens


Prompt: TypeAlias = str | Sequence[int] | Sequence[Mapping[str, str]] | Tensor
"""A text, token ids (T,), or the messages of a chat: {"role": ..., "content": ...}."""


def tokenizer_of(lens: Any) -> Any:
    """The model's tokenizer; None where there is none."""
    return getattr(getattr(lens, "model", None), "tokenizer", None)


def bos_id(lens: Any, chosen: int | None = None) -> int | None:
    """The beginning-of-sequence token: the chosen one, or that of the model's tokenizer, or None."""
    return chosen if chosen is not None else getattr(tokenizer_of(lens), "bos_token_id", None)


def to_tokens(lens: Lens, prompt: Prompt) -> Tensor:
    """One prompt as ids (T,), checked against the context and the vocabulary."""
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ValueError("prompt is empty: give at least one token")
        ids = tokenize(lens, prompt)
    elif is_chat(prompt):
        ids = tokenize_chat(lens, prompt)
    else:
        ids = _as_ids(prompt)
        if ids.ndim == 2 and ids.shape[0] == 1:
            ids = ids[0]
        if ids.ndim != 1:
            raise ValueError(f"prompt must be a string or one row of token ids (T,), got {ids.dtype} {list(ids.shape)}")
    check_ids(lens, ids, "prompt")
    return ids.to(device=lens.device, dtype=torch.long)


def check_ids(lens: Lens, ids: Tensor, what: str) -> None:
    """Token ids (..., T) that the model can read, or a ValueError that says why not."""
    if ids.numel() == 0:
        raise ValueError(f"{what} is empty: give at least one token")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"{what} must be a string or one row of token ids (T,), got {ids.dtype} {list(ids.shape)}")
    length = ids.shape[-1]
    if length > lens.n_ctx:
        raise ValueError(f"{what} has {length} tokens, but {lens.model_name} reads at most {lens.n_ctx}: shorten it")
    low, high, top = int(ids.min()), int(ids.max()), lens.W_E.shape[0] - 1
    if low < 0 or high > top:
        raise ValueError(f"{what}: token id {low if low < 0 else high} is outside the vocabulary 0..{top}")


def _as_ids(prompt: Any) -> Tensor:
    try:
        return torch.as_tensor(prompt)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"prompt must be a string or one row of token ids (T,), got {type(prompt).__name__}: one prompt at a time"
        ) from error


def tokenize(lens: Lens, text: str) -> Tensor:
    """The model's own BOS default; never its silent truncation, which would answer another prompt."""
    if getattr(lens.model, "tokenizer", None) is None:
        raise ValueError("this model has no tokenizer: give token ids, or set one with model.set_tokenizer")
    return lens.model.to_tokens(text, truncate=False)[0]


def is_chat(prompt: Any) -> TypeGuard[Sequence[Mapping[str, str]]]:
    return isinstance(prompt, list | tuple) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def tokenize_chat(lens: Lens, messages: Sequence[Mapping[str, str]]) -> Tensor:
    """By the tokenizer's chat template, up to where the model answers, or goes on with an answer that is begun: a last
    message of the assistant's. Special tokens are the template's, and none are added."""
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise ValueError(f"a message of a chat is {{'role': ..., 'content': ...}}, got {message!r}")
    tokenizer = getattr(lens.model, "tokenizer", None)
    if tokenizer is None or getattr(tokenizer, "chat_template", None) is None:
        raise ValueError(
            f"the tokenizer of {lens.model_name} has no chat template: give the prompt as a string or token ids, or "
            "set model.tokenizer.chat_template"
        )
    begun = messages[-1]["role"] == "assistant"
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=not begun,
            continue_final_message=begun,
        )
    except Exception as error:  # templates are programs, and raise what they like
        raise ValueError(f"the chat template of {lens.model_name} refuses these messages: {error}") from error
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])


def continuation(lens: Lens, tokens: Tensor, start: int) -> str:
    """What the tokens from `start` on add to the text before them, spaces in front of words included."""
    tokenizer = getattr(lens.model, "tokenizer", None)
    if tokenizer is None:
        return "".join(to_str_tokens(lens, tokens[start:]))
    before, whole = (tokenizer.decode(part.tolist()) for part in (tokens[:start], tokens))
    # Where new bytes change a character at the seam, they are decoded alone.
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(tokens[start:].tolist())


def to_str_tokens(lens: Lens, tokens: Tensor) -> list[str]:
    """One string per id, `<id>` where there is no tokenizer."""
    ids = tokens.reshape(-1).tolist()
    tokenizer = getattr(lens.model, "tokenizer", None)
    if tokenizer is None:
        return [f"<{i}>" for i in ids]
    spelled = {i: tokenizer.decode([i]) for i in set(ids)}
    return [spelled[i] for i in ids]
