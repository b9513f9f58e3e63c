"""Frozen attention's steps down the stream, and gradients against what stands at their own position.

Gradients (Q P, n, d) are those of Q prompts, n each, at their first P positions. Compiled on a CPU where all is float32
or float64, else in torch. None of this is differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pullback import _C

from . import dispatch
from .cpu.borrow import optional, view
from .reference import frozen as reference

SHORT = 64  # positions up to which patterns are multiplied where gradients lie; for more, large products pay for copies


class Placed(NamedTuple):
    """Targets of Q prompts, n each, that stand at one position each: vectors of a table, which several may share."""

    row: Tensor
    """Int64[Tensor, "Q n"]: of the table"""
    factor: Tensor
    """Float[Tensor, "Q n"]: times which the vector is read; 0 where a prompt has no target"""
    pos: Tensor
    """Int64[Tensor, "Q n"]"""

    def contiguous(self) -> Placed:
        return Placed(*(t.contiguous() for t in self))


def spread_heads(
    taken: Tensor, at: Placed, mixing: Tensor, scale: Tensor, P: int, standing: Tensor | None = None
) -> Tensor:
    """Gradients of targets that stand at one position each, behind attention, at the stream before it.

    Args:
        taken: Float[Tensor, "U H d"], what each head takes of a table's vectors, back through W_O and W_V.
        at: where they stand, at positions below P.
        mixing: Float[Tensor, "Q H T T"], what of a source (last) stands at a target: lower triangular.
        scale: Float[Tensor, "Q T"], times which a source is read.
        standing: Float[Tensor, "U d"], the vectors, added at the position itself.

    Returns:
        Float[Tensor, "Q*P n d"]: at source p, factor sum_h mixing[h, pos, p] scale[p] taken[row, h].
    """
    if not _compiled(taken, at.factor, mixing, scale, *(() if standing is None else (standing,))):
        return reference.spread_heads(taken, *at, mixing, scale, P, standing)
    (Q, n), at = at.row.shape, at.contiguous()
    out = taken.new_empty(Q * P, n, taken.shape[-1])
    _spread(taken, at, mixing, scale, standing, out, False)
    return out


def add_heads(R: Tensor, taken: Tensor, at: Placed, mixing: Tensor, scale: Tensor) -> None:
    """Add to gradients R (Q P, n, d) what `spread_heads` makes of the same."""
    if not _compiled(R, taken, at.factor, mixing, scale) or not R.is_contiguous():
        R += reference.spread_heads(taken, *at, mixing, scale, len(R) // len(at.row), None)
        return
    _spread(taken, at.contiguous(), mixing, scale, None, R, True)


def _spread(
    taken: Tensor, at: Placed, mixing: Tensor, scale: Tensor, standing: Tensor | None, out: Tensor, add: bool
) -> None:
    patterns = view(mixing), view(scale), view(at.pos)
    _C.spread_heads(view(taken), view(at.row), view(at.factor), *patterns, optional(standing), view(out), add)


def mix_back(at_z: Tensor, mixing: Tensor, scale: Tensor, n_kv: int, sizes: tuple[int, int] | None = None) -> Tensor:
    """Gradients at what heads write, before W_O, at what they read, behind W_V.

    Args:
        at_z: Float[Tensor, "Q P n H d_head"].
        mixing, scale: as of `spread_heads`.
        n_kv: key/value heads; H / n_kv neighbouring heads share one.
        sizes: positions and columns that a product in torch may have, at least P and n; None: these.

    Returns:
        Float[Tensor, "Q P n n_kv d_head"]: at source p, scale[p] sum_t mixing[h, t, p] at_z[t, h].
    """
    Q, P, n, _, d_head = at_z.shape
    if P > SHORT or not _compiled(at_z, mixing, scale):
        return reference.mix_back(at_z, mixing, scale, n_kv, sizes or (P, n))
    at_z, out = at_z.contiguous(), at_z.new_empty(Q, P, n, n_kv, d_head)
    _C.mix_back(view(at_z), view(mixing), view(scale), view(out))
    return out


def contract_leaves(R: Tensor, leaves: Sequence[Tensor], starts: Sequence[int], out: Tensor) -> None:
    """out[b, start + q P + p] += <R[q P + p, b], u[q, p]> for every leaf u and its start.

    Args:
        R: Float[Tensor, "Q*P n d"].
        leaves: Float[Tensor, "Q P d"] each.
        out: Float[Tensor, "n columns"].
    """
    if not _compiled(R, *leaves, out):
        return reference.contract_leaves(R, leaves, starts, out)
    if leaves:
        _C.contract_leaves(view(R), [view(u) for u in leaves], starts, view(out))
    return None


def contract_written(R: Tensor, written: Tensor, first: int, out: Tensor) -> None:
    """out[b, q, s] += sum_p <R[q, p, b], written[q, p, s]>.

    Args:
        R: Float[Tensor, "Q P n d"].
        written: Float[Tensor, "Q P sources d"], what is written at p of the source at position first + s: 0 before it.
        out: Float[Tensor, "n Q sources"].
    """
    if not _compiled(R, written, out):
        return reference.contract_written(R, written, first, out)
    _C.contract_written(view(R), view(written), first, view(out))
    return None


def _compiled(*tensors: Tensor) -> bool:
    """Whether the compiled kernels take these."""
    if dispatch.forced() not in ("auto", "cpu"):
        return False
    dtype = tensors[0].dtype
    return dtype in (torch.float32, torch.float64) and all(
        t.device.type == "cpu" and t.dtype == dtype and (t.stride(-1) == 1 or t.shape[-1] <= 1) for t in tensors
    )
