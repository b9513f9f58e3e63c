"""Measuring how a block is wired, by running it: flags have been seen to lie (METHODS 0.3)."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pullback.lens.weights import NO_NORM

if TYPE_CHECKING:
    from pullback.lens.adapter import Lens

PROBE_LENGTH = 4


def probe_tokens(lens: Lens) -> Tensor:
    """A few token ids, (1, T), spread over the vocabulary."""
    n = min(PROBE_LENGTH, lens.n_ctx)
    return (torch.arange(1, n + 1) * max(1, lens.d_vocab // (n + 1)) % lens.d_vocab)[None]


def relative_error(a: Tensor, b: Tensor, floor: float = 1e-30) -> float:
    """Largest |a - b| against the largest |b|, or `floor` if that is more: what cancels to nothing leaves rounding."""
    return float((a - b).abs().max() / b.abs().max().clamp(min=floor))


def tolerance(dtype: torch.dtype) -> float:
    """How well a recorded activation must agree with its linear reconstruction."""
    return {torch.float64: 1e-9, torch.float32: 2e-4}.get(dtype, 5e-2)


def must_be_finite(lens: Lens, at: Mapping[str, Tensor]) -> None:
    """Raises ValueError naming the first site, in the order given, whose activations are NaN or infinite."""
    for site, value in at.items():
        # What is not finite makes the sum so, which one pass finds; a sum may overflow where nothing else does.
        if not isfinite(float(value.sum())) and not bool(torch.isfinite(value).all()):
            raise ValueError(
                f"lens: the activations of {lens.model_name} at {site} are NaN or infinite; its weights are damaged, "
                f"or {str(lens.dtype).removeprefix('torch.')} overflows on this prompt"
            )


def measure_parallel(lens: Lens) -> bool:
    """True where every layer's MLP reads the stream before attention wrote to it, False where every one reads it after.

    Attention that writes nothing tells nothing: a model in which none does counts as sequential.
    Raises ValueError where a layer reads neither, where layers differ, or where activations are NaN or infinite.
    """
    blocks = [f"blocks.{i}." for i in range(lens.n_layers)]
    reads = [_mlp_reads(lens, i) for i in range(lens.n_layers)]
    sites = [b + s for b, read in zip(blocks, reads, strict=True) for s in ("hook_resid_pre", "hook_attn_out", *read)]
    _, seen = lens.record(probe_tokens(lens), sites)
    must_be_finite(lens, {s: seen[s] for s in sites})

    def gap(i: int, stream: Tensor) -> float:
        """How far layer i's MLP is from reading this stream."""
        norm = lens.layer_norms(i).ln2
        target = seen[blocks[i] + reads[i][0]]
        return relative_error(
            norm.normalized(stream, seen[blocks[i] + reads[i][1]]) if len(reads[i]) == 2 else stream, target
        )

    before = [seen[b + "hook_resid_pre"] for b in blocks]
    after = [x + seen[b + "hook_attn_out"] for x, b in zip(before, blocks, strict=True)]
    errors = {
        wiring: max(gap(i, x) for i, x in enumerate(streams)) for wiring, streams in ((False, after), (True, before))
    }
    best = min(errors, key=lambda wiring: errors[wiring])  # a tie is sequential
    if not errors[best] <= tolerance(lens.dtype):
        raise ValueError(
            f"lens: the MLPs of {lens.model_name} do not all read the stream before attention (off by "
            f"{errors[True]:.1e}), nor all the stream after it ({errors[False]:.1e}); this wiring is not supported"
        )
    return best


def _mlp_reads(lens: Lens, layer: int) -> tuple[str, ...]:
    """Sites that show what the MLP reads: the norm's output and denominator; without a norm, the MLP's input."""
    norms = lens.layer_norms(layer)
    at = norms.ln2_at
    return ("mlp.hook_in",) if norms.ln2.kind == NO_NORM else (f"{at}.hook_normalized", f"{at}.hook_scale")
