"""Prompts to token ids and back, with sentences for what cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pullback.lens.adapter import Lens


def to_tokens(lens: Lens, prompt: str | Sequence[int] | Tensor) -> Tensor:
    """One prompt as ids (T,), checked against the context and the vocabulary."""
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ValueError("prompt is empty: give at least one token")
        ids = tokenize(lens, prompt)
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


def to_str_tokens(lens: Lens, tokens: Tensor) -> list[str]:
    """One string per id, `<id>` where there is no tokenizer."""
    ids = [int(t) for t in tokens.reshape(-1)]
    tokenizer = getattr(lens.model, "tokenizer", None)
    if tokenizer is None:
        return [f"<{i}>" for i in ids]
    return [tokenizer.decode([i]) for i in ids]
