"""What a feature says: the tokens whose logits its decoder raises and lowers most, through the direct path."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.lens import Lens
from pullback.ops import top_pullbacks
from pullback.transcoders import LayeredDictionary


def top_logits(lens: Lens, sets: LayeredDictionary, layer: int, k: int) -> tuple[Tensor, Tensor]:
    """Token ids of the k largest and the k smallest effects of every feature of a layer, each Int[Tensor, 'F k'].

    The effect is <sum of its decoder rows, W_U demeaned>, behind the last norm with its denominator taken as 1.
    """
    unembedding = (lens.W_U - lens.W_U.mean(1, keepdim=True)).T
    said = lens.ln_final.pullback(unembedding, torch.ones_like(unembedding[:, :1])).float().contiguous()
    writes = torch.stack([sets.decoder(layer, dst)[:].float() for dst in sets.targets(layer)]).sum(0)
    k = min(k, said.shape[0])
    return top_pullbacks(writes, said, k)[1].cpu(), top_pullbacks(-writes, said, k)[1].cpu()
