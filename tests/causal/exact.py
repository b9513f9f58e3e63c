"""A ReLU model and its own MLPs as transcoders: every claim about features can be checked against the MLP itself."""

from __future__ import annotations

import functools
from typing import Any

import torch

from pullback.lens import Lens, as_lens
from pullback.transcoders import ReLU, Transcoder, TranscoderSet
from tests import models


@functools.cache
def relu_model(name: str = "LN-gqa-standard-plain") -> Lens:
    return as_lens(models.native(seed=21, **{**models.NATIVE[name], "act_fn": "relu"}))


def own_mlps(lens: Lens) -> TranscoderSet:
    """W_enc = W_in, W_dec = W_out: no error anywhere."""

    def transcoder(mlp: Any, layer: int) -> Transcoder:
        weights = (mlp.W_in.T, mlp.b_in, mlp.W_out, mlp.b_out)
        return Transcoder(*(w.detach() for w in weights), activation=ReLU(), reading=lens.reading(layer))

    return TranscoderSet({i: transcoder(block.mlp, i) for i, block in enumerate(lens.model.blocks)})


def prompts(n: int, T: int, seed: int) -> torch.Tensor:
    return torch.randint(0, models.VOCAB, (n, T), generator=torch.Generator().manual_seed(seed))
