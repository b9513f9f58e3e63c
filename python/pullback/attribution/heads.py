"""Frozen attention of one layer, as a gradient passes it on its way down."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from pullback.lens import LayerTrace
from pullback.ops.frozen import mix_back


class Heads:
    """From attention's output to the stream it reads: through frozen W_O, pattern, W_V and ln1.

    Gradients (Q P, n, d) are those of Q prompts, n each, at their first P positions. The pullback of a frozen norm is
    linear, so its weight and centring are multiplied into W_V once; its denominators are left to gradients, since a
    pattern times those would be as large as the pattern again.

    Args:
        layer: of Q prompts of one length (`LayerTrace.stacked`).
        dtype: of the products; bfloat16 is faster where the processor multiplies it, and rounds.
    """

    def __init__(self, layer: LayerTrace, dtype: torch.dtype) -> None:
        w = layer.weights
        self.n_heads, self.d_head, d = w.W_O.shape
        self.n_kv = w.W_V.shape[0]
        self.n_prompts = layer.mixing.shape[0]
        W_V = w.W_V.transpose(1, 2).reshape(self.n_kv * self.d_head, d)
        self.from_v = w.ln1.pullback(W_V, W_V.new_ones(1)).to(dtype)
        self.to_z = w.W_O.reshape(self.n_heads * self.d_head, d).to(dtype)
        # What a head reads at a source (Q, T, 1), and what of it stands at a target (Q, n_heads, T_dst, T_src).
        self.read_scale = 1 / layer.ln1_scale
        self.mixing = layer.mixing.to(dtype)
        # On a CPU, single vectors are spread in the precision of the trace, which holds its pattern anyway.
        self.spreading = layer.mixing if layer.mixing.device.type == "cpu" else self.mixing
        self.shapes = Shapes(self.mixing)
        self._two_steps: tuple[Heads, Tensor] | None = None

    @cached_property
    def from_output(self) -> Tensor:
        """`to_z` the other way around, (d, n_heads d_head)."""
        return self.to_z.T.contiguous()

    def add_pullback(self, R: Tensor, at_z: Tensor | None = None) -> None:
        """Add to gradients R (Q P, n, d) at attention's output what they become at the stream before it; `at_z` (Q P n,
        n_heads d_head) if it is known already what they are at what the heads write."""
        Q, H, (rows, n, d) = self.n_prompts, self.n_heads, R.shape
        P, flat = rows // Q, R.view(rows * n, d)
        if at_z is None:
            at_z = self._times(flat, self.to_z.T)
        sizes = self.shapes.positions(P), self.shapes.columns(n)
        at_v = mix_back(at_z.view(Q, P, n, H, -1), self.mixing, self.read_scale[..., 0], self.n_kv, sizes)
        at_v = at_v.view(rows * n, -1)
        if R.dtype == at_v.dtype:
            flat.addmm_(at_v, self.from_v)
        else:
            flat.add_(self._times(at_v, self.from_v))

    def takes(self, vectors: Tensor) -> Tensor:
        """What each head takes of vectors (n, d) that read attention's output, back to the stream but for its pattern
        and denominators, (n, n_heads, d): W_V is multiplied once, not at every position."""
        at_z = padded(self.at_z(vectors), self.shapes.rows(len(vectors)))
        taken = (at_z.transpose(0, 1) @ self._per_head(self.from_v)).transpose(0, 1)[: len(vectors)]
        return taken.to(self.spreading.dtype)

    def two_steps(self, upper: Heads) -> Tensor:
        """Patterns of two layers, (Q, n_heads (1 + upper.n_heads), T, T): of what stands in between and is mixed by a
        head of this layer, and of what a head of the upper one has brought there. Denominators of this layer apart."""
        if self._two_steps is None or self._two_steps[0] is not upper:
            brought = (upper.mixing * upper.read_scale.transpose(1, 2)[:, None])[:, None] @ self.mixing[:, :, None]
            both = torch.cat([self.mixing[:, :, None], brought], 2)  # (Q, n_heads, 1 + upper.n_heads, T, T)
            self._two_steps = upper, both.flatten(1, 2)
        return self._two_steps[1]

    def written_by(self, u: Tensor, sources: slice, P: int) -> Tensor:
        """What attention writes at the first P positions of what the stream holds at a slice of source positions:
        u (Q, T, d) -> (Q, P, n_sources, d)."""
        Q = self.n_prompts
        read = u[:, sources] * self.read_scale[:, sources]
        at_v = (read.to(self.from_v.dtype) @ self.from_v.T).unflatten(-1, (self.n_kv, self.d_head))
        at_v = at_v.repeat_interleave(self.n_heads // self.n_kv, 2).permute(2, 0, 1, 3).flatten(1, 2)
        moved = at_v @ self.to_z.view(self.n_heads, self.d_head, -1)
        moved = moved.unflatten(1, (Q, -1))  # (n_heads, Q, n_sources, d)
        weights = self.mixing[:, :, :P, sources].permute(0, 3, 2, 1)  # (Q, n_sources, P, n_heads)
        return (weights @ moved.permute(1, 2, 0, 3)).transpose(1, 2).to(u.dtype)

    def at_z(self, vectors: Tensor) -> Tensor:
        """Vectors (n, d) that read attention's output, as they read each head before W_O: (n, n_heads, d_head)."""
        return self._times(vectors, self.to_z.T).unflatten(1, (self.n_heads, self.d_head))

    def values(self, x: Tensor) -> Tensor:
        """What each head reads of the stream x (T, d) of one prompt, to be mixed: (n_heads, T, d_head)."""
        read = x * self.read_scale[0]
        by_kv = (read.to(self.from_v.dtype) @ self.from_v.T).unflatten(1, (self.n_kv, self.d_head)).transpose(0, 1)
        return by_kv.repeat_interleave(self.n_heads // self.n_kv, 0)

    def at_stream(self, at_z: Tensor, head: Tensor) -> Tensor:
        """What each of n vectors at one head's z, (n, d_head), is at the stream, pattern and denominators apart:
        (n, d)."""
        by_kv = at_z.new_zeros(len(head), self.n_kv, self.d_head)
        by_kv[torch.arange(len(head), device=head.device), head // (self.n_heads // self.n_kv)] = at_z
        return by_kv.flatten(1) @ self.from_v

    def _times(self, x: Tensor, W: Tensor) -> Tensor:
        """Rows x (n, a) times W (a, b)."""
        return (padded(x.to(W.dtype), self.shapes.rows(len(x))) @ W)[: len(x)]

    def _per_head(self, from_v: Tensor) -> Tensor:
        """(n_kv d_head, d) -> (n_heads, d_head, d)"""
        return from_v.view(self.n_kv, self.d_head, -1).repeat_interleave(self.n_heads // self.n_kv, 0)


class Shapes:
    """Sizes of products: what is there, but for bfloat16 on a CPU a little more. oneDNN compiles such a product for
    each new shape and keeps it, the better part of a MiB, and shapes of sweeps hardly ever come twice."""

    def __init__(self, mixing: Tensor) -> None:
        self.exact = mixing.dtype != torch.bfloat16 or mixing.device.type != "cpu"
        self.n_pos = mixing.shape[-1]

    def rows(self, n: int) -> int:
        """At most eight sizes between a power of 2 and the next."""
        return n if self.exact else _up(n, max(16, 1 << max(0, n.bit_length() - 4)))

    def columns(self, n: int) -> int:
        return n if self.exact else _up(n, 16)

    def positions(self, P: int) -> int:
        """At most eight sizes."""
        return P if self.exact else min(self.n_pos, _up(P, -(-self.n_pos // 8)))


def _up(n: int, step: int) -> int:
    return -(-n // step) * step


def padded(x: Tensor, n: int) -> Tensor:
    """With rows of 0 behind, n in all."""
    return x if len(x) == n else torch.cat([x, x.new_zeros(n - len(x), *x.shape[1:])])
