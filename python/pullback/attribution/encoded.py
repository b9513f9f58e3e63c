"""What dictionaries read of prompts of one length, whose rows stand one after the other."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pullback.ops import SparseActivations
from pullback.transcoders import BatchTopK, LayeredDictionary


def encoded(sets: LayeredDictionary, layer: int, x: Tensor, keep: Tensor) -> SparseActivations:
    """Features of every prompt's rows, x (Q, T, d), without those at positions where `keep` (T, 1) is 0.

    Raises ValueError for activations that are NaN or infinite.
    """
    if not bool(torch.isfinite(x).all()):
        raise ValueError(
            f"the activations at layer {layer} are NaN or infinite: attribution has no meaning on this prompt"
        )
    acts = _encoded(sets, layer, x)
    return acts.where(keep.repeat(len(x), 1)[acts.rows(), 0] != 0)


def _encoded(sets: LayeredDictionary, layer: int, x: Tensor) -> SparseActivations:
    """Where rows compete for activity, only those of one prompt do."""
    rule = sets[layer].activation
    if not isinstance(rule, BatchTopK) or rule.threshold is not None:
        return sets.encode(layer, x)
    return SparseActivations.stacked([sets.encode(layer, rows) for rows in x], sets[layer].d_sae, x)


def by_prompt(acts: Mapping[int, SparseActivations], n_prompts: int) -> list[dict[int, SparseActivations]]:
    """Features of each prompt, by layer, from those of all of them."""
    parts = {i: all_rows.split(all_rows.n_rows // n_prompts) for i, all_rows in acts.items()}
    return [{i: of_layer[q] for i, of_layer in parts.items()} for q in range(n_prompts)]
