"""Depths: places along the residual stream, in the order in which it passes them.

Block l is read and written at three: before it, where its attention writes, and where its MLP reads and writes. What
writes at one depth reaches what reads at a greater one, and nothing else (of a parallel block, its attention does not
reach its own MLP either). A dictionary of attention's outputs reads and writes at attention's depth.
"""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

PER_BLOCK = 3
Layers = TypeVar("Layers", int, Tensor)


def before_block(layer: Layers) -> Layers:
    """n_layers stands for behind the last block."""
    return PER_BLOCK * layer


def at_attention(layer: Layers) -> Layers:
    return PER_BLOCK * layer + 1


def at_mlp(layer: Layers) -> Layers:
    return PER_BLOCK * layer + 2


def n_depths(n_layers: int) -> int:
    """Depths of a model, the one behind its last block included."""
    return PER_BLOCK * n_layers + 1


def block_of(depth: int) -> int:
    return depth // PER_BLOCK
