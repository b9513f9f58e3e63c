"""What chosen features are: the tokens they read, the tokens they write, and what asks for them."""

from __future__ import annotations

from typing import Any

import torch

from pullback.lens import Lens
from pullback.transcoders import LayeredDictionary

SHOWN, TOKENS = 16, 6


@torch.no_grad()
def cards(lens: Lens, given: dict[str, LayeredDictionary], chosen: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first chosen features with `writes`, the tokens whose logits they raise most directly, and `reads`, of layer
    0 the tokens they read most (behind it, embeddings alone would not say)."""
    mean_free = lens.W_U - lens.W_U.mean(1, keepdim=True)

    def words(scores: torch.Tensor) -> list[str]:
        return lens.to_str_tokens(scores.topk(min(TOKENS, len(scores))).indices)

    found = []
    for feature in chosen[:SHOWN]:
        sets, layer, own = given[feature["kind"]], feature["layer"], [feature["feature"]]
        card = dict(feature) | {"writes": words(sets.decoder_rows(layer, own, layer)[0].to(mean_free) @ mean_free)}
        if layer == 0 and sets.hook_in(layer) != sets.hook_out(layer):
            card["reads"] = words(lens.W_E @ sets.encoder_rows(layer, own)[0].to(lens.W_E))
        found.append(card)
    return found
