"""Steering: the same features, scaled by one factor after another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pullback.attribution.local import Dictionaries
from pullback.attribution.reader import token_id
from pullback.causal.intervene import held, run_from, unchanged_input, values_at
from pullback.causal.margin import Margin
from pullback.causal.places import Feature, Place, Placed, Supernode, fitted, parsed, placed
from pullback.lens import Lens, Trace, as_lens, trace
from pullback.transcoders import LayeredDictionary

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Steered:
    """Logits (n, V) at the last position, a row for each of n factors. Tokens are ids, or strings of one token; others
    raise ValueError."""

    factors: list[float]
    logits: Tensor
    lens: Lens

    def __repr__(self) -> str:
        return f"Steered(factors={self.factors}, logits={list(self.logits.shape)})"

    @property
    def probabilities(self) -> Tensor:
        """(n, V)"""
        return torch.softmax(self.logits, -1)

    def margins(self, target: int | str, other: int | str | None = None) -> Tensor:
        """logit[target] - logit[other] (or the mean of all) for each factor, (n)."""
        return Margin(self._id(target), None if other is None else self._id(other))(self.logits[:, None])

    def to_pandas(self, tokens: Sequence[int | str]) -> pd.DataFrame:
        """A row for each factor and token: factor, token (as given), logit, probability."""
        import pandas as pd

        if isinstance(tokens, str):
            raise ValueError(f"steer: tokens is one string; give a list of tokens, [{tokens!r}]")
        named = [int(token) if isinstance(token, Tensor) else token for token in tokens]
        chosen = [self._id(token) for token in named]
        return pd.DataFrame(
            {
                "factor": [factor for factor in self.factors for _ in named],
                "token": named * len(self.factors),
                "logit": self.logits[:, chosen].flatten().cpu().numpy(),
                "probability": self.probabilities[:, chosen].flatten().cpu().numpy(),
            }
        )

    def _id(self, token: int | str) -> int:
        return token_id(self.lens, token, "steer")


def steer(
    model: Any,
    sets: LayeredDictionary,
    prompt: str | Sequence[int] | Tensor,
    features: Supernode | Sequence[Feature],
    factors: Sequence[float],
    *,
    freeze: str | None = "attention",
    constrained_layers: Iterable[int] | None = None,
    attention_saes: LayeredDictionary | None = None,
    strict: bool = True,
) -> Steered:
    """Features set to each factor times what they are in the unchanged run: 1 leaves them, 0 ablates, -1 turns them
    round.

    Args:
        features: (layer, position, feature) or a `FeatureTarget` each, or a `Supernode`; positions may be slices.
        freeze, constrained_layers, attention_saes, strict: of `intervene`.

    Raises:
        ValueError: as `intervene`, for no factor, and where none of the features is active on this prompt: scaling
            them would change nothing.
    """
    if not isinstance(factors, Iterable):
        raise ValueError(f"steer: factors are several numbers, such as [0, 1], got {factors!r}")
    factors = list(factors)
    if not factors:
        raise ValueError("steer: give at least one factor")
    lens = as_lens(model)
    base = trace(lens, lens.to_tokens(prompt))
    dictionaries = fitted(lens, sets, attention_saes, strict=strict)
    hold = held(lens, dictionaries, freeze, constrained_layers)
    group = features if isinstance(features, Supernode) else Supernode("features", tuple(features))
    rows = []
    for factor in factors:
        wanted = placed(dictionaries, base.n_pos, parsed([(group, factor)]))
        _must_be_active(dictionaries, base, group, wanted)
        rows.append(run_from(lens, dictionaries, base, wanted, hold).logits[-1])
    return Steered([float(factor) for factor in factors], torch.stack(rows), lens)


def _must_be_active(dictionaries: Dictionaries, base: Trace, group: Supernode, wanted: dict[Place, Placed]) -> None:
    for (attention, layer), places in wanted.items():
        sets = dictionaries[attention]
        x = unchanged_input(sets, base, layer)
        if bool(values_at(sets.encode(layer, x), places.positions.to(x.device), places.ids.to(x.device)).any()):
            return
    raise ValueError(
        f"steer: none of the {len(group.features)} features of '{group.name}' is active on this prompt, so scaling "
        "them changes nothing; set them to values with intervene"
    )
