"""A ReLU model and its own MLPs as transcoders: every claim about features can be checked against the MLP itself."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch

from pullback.causal import Ablation
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


def exact_saes(lens: Lens, *, layers: list[int] | None = None, far: float = 50.0) -> TranscoderSet:
    """y = ReLU(y + far) - far: a feature for each coordinate of what attention writes, all on and far from off."""
    eye, off = torch.eye(lens.d_model, dtype=lens.dtype), torch.full((lens.d_model,), far, dtype=lens.dtype)
    hooks = {"hook_in": "hook_attn_out", "hook_out": "hook_attn_out"}
    return TranscoderSet(
        {
            i: Transcoder(eye, off, eye, -off, activation=ReLU(), reading=lens.reading(i), **hooks)
            for i in (range(lens.n_layers) if layers is None else layers)
        }
    )


def prompts(n: int, T: int, seed: int) -> torch.Tensor:
    return torch.randint(0, models.VOCAB, (n, T), generator=torch.Generator().manual_seed(seed))


def nearly(same: Ablation, step: float) -> Ablation:
    """A share `step` of every node taken away."""
    return replace(
        same,
        acts={i: replace(a, values=a.values * (1 - step)) for i, a in same.acts.items()},
        errors={i: e * (1 - step) for i, e in same.errors.items()},
        attention=None if same.attention is None else nearly(same.attention, step),
    )
