"""Frozen attention's steps down the stream, in plain torch, for any device and dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def spread_heads(taken: Tensor, mixing: Tensor, scale: Tensor, pos: Tensor, P: int, standing: Tensor | None) -> Tensor:
    Q, n, _, d = taken.shape
    prompt = torch.arange(Q, device=pos.device)[:, None]
    pattern = mixing[prompt, :, pos, :P]  # (Q, n, H, P)
    moved = (pattern.transpose(2, 3) @ taken) * scale[:, None, :P, None]  # (Q, n, P, d)
    out = moved.transpose(1, 2).to(taken.dtype if standing is None else standing.dtype).contiguous()
    if standing is not None:
        column = torch.arange(n, device=pos.device)
        out[prompt, pos, column] += standing
    return out.view(Q * P, n, d)


def mix_back(at_z: Tensor, mixing: Tensor, scale: Tensor, n_kv: int) -> Tensor:
    Q, P, n, H, d_head = at_z.shape
    before = at_z.permute(0, 3, 1, 2, 4).flatten(3)  # (Q, H, P, n d_head)
    at_v = (mixing[:, :, :P, :P].transpose(2, 3) @ before).view(Q, n_kv, H // n_kv, P, n, d_head).sum(2)
    return (at_v * scale[:, None, :P, None, None]).permute(0, 2, 3, 1, 4).contiguous()


def contract_leaves(R: Tensor, leaves: Sequence[Tensor], starts: Sequence[int], out: Tensor) -> None:
    for u, start in zip(leaves, starts, strict=True):
        out[:, start : start + len(R)] += torch.linalg.vecdot(R, u.reshape(len(R), 1, -1)).T


def contract_written(R: Tensor, written: Tensor, first: int, out: Tensor) -> None:  # noqa: ARG001
    # What a source writes before its own position is 0.
    out += (R @ written.transpose(2, 3)).sum(1).transpose(0, 1)
