"""Frozen attention's steps down the stream, in plain torch, for any device and dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SOURCES = 256  # positions of a product with a triangle of patterns: half of it is zeros. In bfloat16 it is no faster.


def spread_heads(
    taken: Tensor,
    row: Tensor,
    factor: Tensor,
    pos: Tensor,
    mixing: Tensor,
    scale: Tensor,
    P: int,
    standing: Tensor | None,
) -> Tensor:
    Q, n = row.shape
    prompt = torch.arange(Q, device=pos.device)[:, None]
    pattern = mixing[prompt, :, pos, :P]  # (Q, n, H, P)
    moved = (pattern.transpose(2, 3) @ taken[row]) * (scale[:, None, :P] * factor[..., None])[..., None]  # (Q, n, P, d)
    out = moved.transpose(1, 2).to(taken.dtype if standing is None else standing.dtype).contiguous()
    if standing is not None:
        column = torch.arange(n, device=pos.device)
        out[prompt, pos, column] += factor[..., None] * standing[row]
    return out.view(Q * P, n, -1)


def mix_back(at_z: Tensor, mixing: Tensor, scale: Tensor, n_kv: int, sizes: tuple[int, int]) -> Tensor:
    Q, P, n, H, d_head = at_z.shape
    more_P, more_n = sizes
    before = (at_z.new_empty if sizes == (P, n) else at_z.new_zeros)(Q, H, more_P, more_n, d_head)
    before[:, :, :P, :n] = at_z.permute(0, 3, 1, 2, 4)
    out = at_z.new_empty(Q, P, n, n_kv, d_head)
    step = more_P if at_z.dtype == torch.bfloat16 else SOURCES
    for first in range(0, P, step):
        # Nothing of these sources stands at a target before them.
        sources, end = slice(first, min(first + step, more_P)), min(first + step, P)
        at_v = mixing[:, :, first:more_P, sources].transpose(2, 3) @ before[:, :, first:].flatten(3)
        if n_kv < H:  # query heads share a key/value head
            at_v = at_v.unflatten(1, (n_kv, -1)).sum(2)
        at_v = at_v.unflatten(3, (more_n, d_head))[:, :, : end - first, :n].permute(0, 2, 3, 1, 4)
        torch.mul(at_v, scale[:, first:end, None, None, None], out=out[:, first:end])
    return out


def contract_leaves(R: Tensor, leaves: Sequence[Tensor], starts: Sequence[int], out: Tensor) -> None:
    for u, start in zip(leaves, starts, strict=True):
        out[:, start : start + len(R)] += torch.linalg.vecdot(R, u.reshape(len(R), 1, -1)).T


def contract_written(R: Tensor, written: Tensor, first: int, out: Tensor) -> None:  # noqa: ARG001
    # What a source writes before its own position is 0.
    out += (R @ written.transpose(2, 3)).sum(1).transpose(0, 1)
