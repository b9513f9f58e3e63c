"""Measuring how a block is wired, by running it: flags have been seen to lie (METHODS 0.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pullback.lens.adapter import Lens

PROBE_LENGTH = 4


def probe_tokens(lens: Lens) -> Tensor:
    """A few token ids, (1, T), spread over the vocabulary."""
    n = min(PROBE_LENGTH, lens.n_ctx)
    return (torch.arange(1, n + 1) * max(1, lens.d_vocab // (n + 1)) % lens.d_vocab)[None]


def relative_error(a: Tensor, b: Tensor) -> float:
    """Largest |a - b| against the largest |b|."""
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))


def tolerance(dtype: torch.dtype) -> float:
    """How well a recorded activation must agree with its linear reconstruction."""
    return {torch.float64: 1e-9, torch.float32: 2e-4}.get(dtype, 5e-2)


def measure_parallel(lens: Lens) -> bool:
    """True where ln2 of layer 0 reads the stream before attention wrote to it.

    Raises ValueError where it reads neither that nor the stream after.
    """
    sites = ["hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post"]
    norm = lens.layer_weights(0).ln2
    has_norm = norm.kind != "none"
    read = ["ln2.hook_scale", "ln2.hook_normalized"] if has_norm else ["mlp.hook_in"]
    names = [f"blocks.0.{s}" for s in (*sites, *read)]
    _, seen = lens.record(probe_tokens(lens), names)
    at = {s: seen[f"blocks.0.{s}"][0] for s in (*sites, *read)}
    before, after = at["hook_resid_pre"], at["hook_resid_pre"] + at["hook_attn_out"]
    target = at["ln2.hook_normalized"] if has_norm else at["mlp.hook_in"]

    def gap(x: Tensor) -> float:
        return relative_error(norm.normalized(x, at["ln2.hook_scale"]) if has_norm else x, target)

    errors = {True: gap(before), False: gap(after)}
    best = min(errors, key=lambda key: errors[key])
    if errors[best] > tolerance(lens.dtype):
        raise ValueError(
            f"lens: the MLP norm of {lens.model_name} reads neither the stream before attention (off by {errors[True]:.1e}) "
            f"nor the stream after it ({errors[False]:.1e}); this block wiring is not supported"
        )
    return best
