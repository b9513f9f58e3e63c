"""Batches of prompts with their masks, from whatever holds tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pullback.training.documents import Documents, is_dataset
from pullback.training.tokenfile import TOKEN_FILES, TokenFile

Batch: TypeAlias = tuple[Tensor, Tensor]
"""tokens Int[Tensor, 'B T'] and mask Bool[Tensor, 'B T'], true where a token counts"""

Tokens: TypeAlias = (
    Tensor | np.ndarray | TokenFile | Documents | str | Path | Sequence[Any] | Iterable[Any] | Callable[[], Any]
)
"""Prompts: a tensor or an array (n, T), a string, a list of strings, of token lists or of vectors, a TokenFile.
Documents: a `Documents`, a dataset of Hugging Face. A Path is one or the other by its suffix. Batches: an iterable of
tensors (B, T) or of pairs (tokens, mask), or a function that returns one such batch, or a fresh iterator of them, at
every call."""


class Prompts(Protocol):
    """Prompts that can be taken in any order."""

    def __len__(self) -> int: ...

    def take(self, chosen: Tensor) -> Batch: ...


def from_path(tokens: Tokens) -> Tokens:
    """What a Path leads to; anything else as it is. Raises ValueError for a suffix that says nothing."""
    if not isinstance(tokens, Path):
        return tokens
    if tokens.suffix in TOKEN_FILES:
        return TokenFile(tokens)
    return Documents(tokens)


def is_packed(tokens: Tokens) -> bool:
    """Whether contexts will hold several documents, so that a BOS may stand inside."""
    tokens = from_path(tokens)
    return isinstance(tokens, Documents) or is_dataset(tokens)


def token_batches(
    lens: Any,
    tokens: Tokens,
    *,
    batch_size: int,
    mask: Tensor | None = None,
    context_size: int | None = None,
    generator: torch.Generator | None = None,
    repeat: bool = False,
) -> Iterator[Batch]:
    """Batches of prompts with their masks.

    Prompts are taken `batch_size` at a time, in an order drawn from `generator` if there is one, padded on the right
    where lengths differ (padding is masked). Documents are packed, one behind another, into contexts of `context_size`
    (None: all that the model can read). With `repeat` either starts over, reshuffled, without end; an iterator that
    cannot start over ends.

    Raises:
        ValueError: no tokens, a shape that is neither prompts nor batches, a mask that does not fit, or sizes below 1.
    """
    for name, size in (("batch_size", batch_size), ("context_size", context_size)):
        if size is not None and size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    tokens = from_path(tokens)
    if is_dataset(tokens):
        tokens = Documents(tokens)
    prompts = _prompts(lens, tokens, mask, context_size)
    if prompts is not None:
        batches = _prompt_batches(prompts, batch_size, generator, repeat)
    elif isinstance(tokens, Documents):
        if mask is not None:
            raise ValueError("mask: give it with a tensor of prompts (n, T); documents have none")
        batches = tokens.batches(lens, batch_size, context_size or lens.n_ctx, generator, repeat)
    elif mask is not None:
        raise ValueError("mask: give it with a tensor of prompts (n, T); batches bring theirs as pairs (tokens, mask)")
    else:
        batches = _given_batches(tokens, repeat)
    for ids, keep in batches:
        yield ids[:, :context_size], keep[:, :context_size]


class _Tensor:
    def __init__(self, ids: Tensor, mask: Tensor) -> None:
        self.ids, self.mask = ids, mask

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, chosen: Tensor) -> Batch:
        at = chosen.to(self.ids.device)
        return self.ids[at], self.mask[at]


class _Rows:
    """Single prompts of different lengths."""

    def __init__(self, rows: list[Batch]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: Tensor) -> Batch:
        return _padded([self.rows[i] for i in chosen.tolist()])


def _prompts(lens: Any, tokens: Tokens, mask: Tensor | None, context_size: int | None) -> Prompts | None:
    """None where `tokens` are batches or documents."""
    if isinstance(tokens, str):
        tokens = [tokens]
    if isinstance(tokens, np.ndarray):
        tokens = TokenFile.of_array(tokens)
    if isinstance(tokens, TokenFile):
        if mask is not None:
            raise ValueError("mask: give it with a tensor of prompts (n, T); a file of tokens has none")
        return tokens.prompts(context_size)
    if isinstance(tokens, Tensor):
        return _Tensor(*_pair(tokens[None] if tokens.ndim == 1 else tokens, mask))
    # A pair (tokens, mask) is one batch; any other tuple or list holds prompts, or batches, by what its first item is.
    if (
        isinstance(tokens, tuple)
        and len(tokens) == 2
        and all(isinstance(item, Tensor) and item.ndim == 2 for item in tokens)
    ):
        return _Tensor(*_pair(tokens[0], tokens[1]))
    if not isinstance(tokens, list | tuple):
        return None
    if len(tokens) == 0:
        raise ValueError("tokens: an empty list has nothing to run the model on; give at least one prompt")
    if not all(isinstance(item, str) or _is_vector(item) for item in tokens):
        return None
    if mask is not None:
        raise ValueError(
            "mask: give it with a tensor of prompts (n, T); a list of prompts is masked by its own lengths"
        )
    rows = [lens.to_tokens(item) if isinstance(item, str) else torch.as_tensor(item) for item in tokens]
    return _Rows([_pair(row.reshape(1, -1), None) for row in rows])


def _is_vector(item: Any) -> bool:
    if isinstance(item, Tensor | np.ndarray):
        return item.ndim == 1
    return isinstance(item, list | tuple) and len(item) > 0 and all(isinstance(token, Integral) for token in item)


def _pair(tokens: Tensor, mask: Tensor | None) -> Batch:
    if tokens.ndim != 2 or tokens.numel() == 0 or tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise ValueError(
            f"tokens must be integers [n_prompts, T] with at least one token, got {tokens.dtype} {list(tokens.shape)}"
        )
    if mask is None:
        mask = torch.ones_like(tokens, dtype=torch.bool)
    if mask.shape != tokens.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"mask must be torch.bool {list(tokens.shape)} like the tokens, got {mask.dtype} {list(mask.shape)}"
        )
    return tokens.long(), mask.to(tokens.device)


def _prompt_batches(prompts: Prompts, size: int, generator: torch.Generator | None, repeat: bool) -> Iterator[Batch]:
    count = len(prompts)
    rounds = -(-size // count) if repeat else 1  # of few prompts, several epochs make one forward pass
    while True:
        epochs = [
            torch.arange(count, device="cpu")
            if generator is None
            else torch.randperm(count, generator=generator, device=generator.device)
            for _ in range(rounds)
        ]
        for chosen in torch.cat(epochs).split(size):
            yield prompts.take(chosen)
        if not repeat:
            return


def _padded(rows: list[Batch]) -> Batch:
    length = max(ids.shape[1] for ids, _ in rows)
    # Causal attention: what stands to the right of a token cannot reach it, so any id serves as padding.
    pads = [(ids, mask, (0, length - ids.shape[1])) for ids, mask in rows]
    pad = torch.nn.functional.pad
    return torch.cat([pad(ids, by) for ids, _, by in pads]), torch.cat(
        [pad(mask, by, value=False) for _, mask, by in pads]
    )


def _given_batches(source: Any, repeat: bool) -> Iterator[Batch]:
    seen = 0
    while True:
        made: Any = source() if callable(source) else source
        one = isinstance(made, Tensor) or (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], Tensor))
        if not one and not isinstance(made, Iterable):
            raise ValueError(
                f"tokens must be prompts, batches, or a function that returns batches; got {type(made).__name__}"
            )
        before = seen
        for item in [made] if one else made:
            seen += 1
            yield _given_batch(item)
        # A function may go on for ever; an iterator has been used up.
        if not repeat or seen == before or (not callable(source) and iter(source) is source):
            return


def _given_batch(item: Any) -> Batch:
    if isinstance(item, Tensor):
        return _pair(item, None)
    if isinstance(item, list | tuple) and len(item) == 2 and isinstance(item[0], Tensor):
        return _pair(*item)
    raise ValueError(
        f"tokens: a batch must be a tensor (B, T) or a pair (tokens, mask), got {type(item).__name__}; prompts come as "
        "a tensor (n, T), a list of strings or a list of token lists, documents as Documents(...)"
    )
