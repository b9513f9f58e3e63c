"""Encoders whose weights stream through memory a block of features at a time: the same features as from all at once.

A threshold looks at one feature alone. What a top-k keeps of all blocks, it keeps of its own block too: the running
selection meets every candidate, and ties go to the lower id because blocks ascend.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.ops import SparseActivations, topk_encode, topk_select
from pullback.transcoders.activations import Activation, BatchTopK, JumpReLU, TopK
from pullback.transcoders.lazy.rows import MappedRows


def encode_in_blocks(activation: Activation, x: Tensor, W_enc: MappedRows, b_enc: Tensor) -> SparseActivations:
    """x Float[Tensor, 'n d_in'], W_enc Float[Tensor, 'F d_in'], b_enc Float[Tensor, 'F'] -> n rows of features, as
    `activation.encode` gives them."""
    F = len(W_enc)
    if isinstance(activation, TopK):
        return SparseActivations.from_topk(*_running_topk(activation, x, W_enc, b_enc), F)
    parts: list[SparseActivations] = []
    for block, W in W_enc.blocks(x.dtype):
        part = _within(activation, block).encode(x, W, b_enc[block])
        ids = part.indices + block.start
        parts.append(SparseActivations(part.indptr, ids, part.values, F))
        if isinstance(activation, BatchTopK) and activation.threshold is None:
            parts = [_side_by_side(parts).largest(activation.k * len(x))]
    return _side_by_side(parts)


def _running_topk(rule: TopK, x: Tensor, W_enc: MappedRows, b_enc: Tensor) -> tuple[Tensor, Tensor]:
    """As slots, not as sparse rows: a signed top-k has zeros among its k, and they keep lower values out."""
    values, ids = x.new_empty(len(x), 0), x.new_empty(len(x), 0, dtype=torch.int32)
    for block, W in W_enc.blocks(x.dtype):
        best, place = topk_encode(x, W, b_enc[block], min(rule.k, len(W)), relu=rule.relu)
        values, ids = torch.cat([values, best], 1), torch.cat([ids, place + block.start], 1)
        values, slots = topk_select(values, min(rule.k, values.shape[1]), relu=rule.relu)
        ids = ids.gather(1, slots.long())
    return values, ids


def _within(activation: Activation, block: slice) -> Activation:
    """The rule for a block of the features."""
    if isinstance(activation, BatchTopK):
        return BatchTopK(min(activation.k, block.stop - block.start), activation.threshold)
    if isinstance(activation, JumpReLU) and isinstance(activation.theta, Tensor) and activation.theta.ndim:
        return JumpReLU(activation.theta[block])
    return activation


def _side_by_side(parts: list[SparseActivations]) -> SparseActivations:
    """The entries of all parts in the same rows; ids of each part above those of the one before."""
    rows, ids, values = (
        torch.cat(column) for column in zip(*((p.rows(), p.indices, p.values) for p in parts), strict=True)
    )
    order = rows.argsort(stable=True)
    indptr = torch.stack([part.indptr for part in parts]).sum(0)
    return SparseActivations(indptr, ids[order], values[order], parts[0].n_features)
