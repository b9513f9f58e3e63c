"""Sums over rows in Triton: see `ops.gradient.column_moments`."""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import MAX_TILES, blocks, check_placed, kernels


def column_moments(y: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of y - center over rows, and of its squares: Float 'n d', Float64 'd' -> Float64 'd', Float64 ''.

    Raises:
        ValueError: tensors not on one CUDA device, or more columns than one launch takes.
    """
    check_placed("column_moments", y, center)
    config = kernels.column_moments_config()
    n, d = y.shape
    grid = blocks(n, config["ROWS"]), blocks(d, config["BLOCK_D"])
    if grid[1] > MAX_TILES:
        raise ValueError(f"column_moments (triton): {d} columns are too many for one launch; do it in pieces")
    sums = center.new_empty(grid[0], d)
    squares = center.new_empty(grid)
    if y.numel() > 0:
        with torch.cuda.device_of(y):
            kernels.column_moments_kernel[grid](y, center, sums, squares, n, d, y.stride(0), **config)
    return sums.sum(0), squares.sum()
