"""Features on a prompt of one's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback.lens import Lens
from pullback.lens.tokens import Prompt
from pullback.transcoders import LayeredDictionary


@torch.no_grad()
def on_prompt(lens: Lens, sets: LayeredDictionary, layer: int, ids: Tensor, prompt: Prompt) -> list[dict[str, Any]]:
    """Of each feature {"tokens", "activations", "substituted"}: its activation at every position, and what it would be
    if the outputs of all lower layers of the set were their reconstructions. The set is one that was found to fit."""
    tokens = lens.to_tokens(prompt)
    words = lens.to_str_tokens(tokens)
    below = [lower for lower in sets.layers if lower < layer]
    plain = _activations(lens, sets, layer, ids, tokens)
    with lens.replace(sets, below, strict=False) as replaced:
        substituted = _activations(replaced, sets, layer, ids, tokens)
    return [
        {"tokens": words, "activations": own, "substituted": other}
        for own, other in zip(plain.T.tolist(), substituted.T.tolist(), strict=True)
    ]


def _activations(lens: Lens, sets: LayeredDictionary, layer: int, ids: Tensor, tokens: Tensor) -> Tensor:
    """(T, n)"""
    site = lens.sites(sets, [layer])[layer][0]
    x = lens.record_only(tokens[None], [site])[site]
    return sets.encode(layer, x).to_dense()[:, ids.to(x.device)].float().cpu()
