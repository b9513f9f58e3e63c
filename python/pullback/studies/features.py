"""What features are: the tokens they read and the tokens they write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pullback.attribution import deembed
from pullback.interpret.features.logits import top_logits
from pullback.lens import Lens
from pullback.transcoders import LayeredDictionary

SHOWN, TOKENS = 16, 6


@torch.no_grad()
def words(
    lens: Lens, sets: LayeredDictionary, layer: int, feature: int, heads: Sequence[Any] = ()
) -> dict[str, list[str]]:
    """`writes`, the tokens whose logits a feature raises most directly, and `reads`, of layer 0 those whose embeddings
    it reads most at its own position, or through `heads` as of `deembed` (behind it, embeddings alone would not say).
    """
    said = top_logits(lens, sets, layer, TOKENS, torch.tensor([feature]))["top_logits"][1]
    found = {"writes": lens.to_str_tokens(said[0])}
    if layer == 0 and sets.hook_in(layer) != sets.hook_out(layer):
        found["reads"] = lens.to_str_tokens(deembed(lens, sets, layer, feature, heads=heads, k=TOKENS).top_ids[0])
    return found


def cards(lens: Lens, given: dict[str, LayeredDictionary], chosen: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first chosen features, with their words."""
    return [one | words(lens, given[one["kind"]], one["layer"], one["feature"]) for one in chosen[:SHOWN]]
