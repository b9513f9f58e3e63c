"""Which tokens count: not those that would spoil statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback.lens.tokens import bos_id, tokenizer_of


def without_bos(tokens: Tensor, mask: Tensor, bos: int | None) -> Tensor:
    """`mask` with the first position cleared where it holds the token `bos`."""
    if bos is None:
        return mask
    mask = mask.clone()
    mask[:, 0] &= tokens[:, 0] != bos
    return mask


def without_padding(tokens: Tensor, mask: Tensor, pad: int | None) -> Tensor:
    """`mask` with the runs of the token `pad` at both ends of each prompt cleared; inside a prompt it counts."""
    if pad is None:
        return mask
    real = (tokens != pad).int()
    begun, still = real.cummax(1).values, real.flip(1).cummax(1).values.flip(1)
    return mask & (begun * still).bool()


@dataclass(frozen=True)
class Excluded:
    """Tokens that are run through the model and then left out.

    Attributes:
        bos: left out at the first position of a prompt.
        pad: left out in the runs that fill a prompt up on either side.
        special: left out wherever they stand.
    """

    bos: int | None = None
    pad: int | None = None
    special: tuple[int, ...] = ()

    @classmethod
    def chosen(
        cls,
        lens: Any,
        *,
        exclude_bos: bool = True,
        bos_token_id: int | None = None,
        exclude_padding: bool = True,
        exclude_special_tokens: bool | Sequence[int] = False,
        packed: bool = False,
    ) -> Excluded:
        """What the settings of a run mean for a model; `packed` contexts have a BOS wherever a document begins.

        Raises:
            ValueError: they ask for a tokenizer that the model does not have.
        """
        tokenizer = tokenizer_of(lens)
        if exclude_special_tokens is True:
            if tokenizer is None:
                raise ValueError(
                    "exclude_special_tokens=True asks the model's tokenizer which they are, and this model has none; "
                    "give their ids instead, exclude_special_tokens=[0, ...]"
                )
            special = tuple(sorted({int(i) for i in getattr(tokenizer, "all_special_ids", [])}))
        else:
            special = tuple(int(i) for i in exclude_special_tokens or ())
        bos = bos_id(lens, bos_token_id) if exclude_bos else None
        if packed and bos is not None:
            special = (*special, bos)
        return cls(
            bos,
            getattr(tokenizer, "pad_token_id", None) if exclude_padding else None,
            special,
        )

    def applied(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """`mask` Bool[Tensor, 'B T'] without what is left out of tokens Int[Tensor, 'B T']."""
        mask = without_padding(tokens, without_bos(tokens, mask, self.bos), self.pad)
        if self.special:
            mask = mask & ~torch.isin(tokens, torch.tensor(self.special, device=tokens.device))
        return mask
