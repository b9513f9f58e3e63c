"""What a feature says: the tokens whose logits its decoder raises and lowers most, through the direct path."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.attribution.pullbacks.tokens import unembedding
from pullback.lens import Lens
from pullback.ops import top_pullbacks
from pullback.transcoders import LayeredDictionary


def top_logits(
    lens: Lens, sets: LayeredDictionary, layer: int, k: int, features: Tensor | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """The k largest and the k smallest effects on logits of every feature of a layer, or of n `features`.

    {"top_logits" and "bottom_logits": (effects Float[Tensor, 'n k'], token ids Int[Tensor, 'n k'])}

    The effect is <sum of its decoder rows, W_U demeaned>, behind the last norm with its denominator taken as 1.
    """
    said = unembedding(lens).float()
    rows = slice(None) if features is None else features
    writes = torch.stack([sets.decoder(layer, dst)[rows].float() for dst in sets.targets(layer)]).sum(0)
    k = min(k, said.shape[0])
    highest, lowest = top_pullbacks(writes, said, k), top_pullbacks(-writes, said, k)
    return {
        "top_logits": (highest[0].cpu(), highest[1].cpu()),
        "bottom_logits": (-lowest[0].cpu(), lowest[1].cpu()),
    }
