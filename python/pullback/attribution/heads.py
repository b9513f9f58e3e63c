"""Frozen attention of one layer, as a gradient passes it on its way down."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.lens import LayerTrace


class Heads:
    """From attention's output to the stream it reads: through frozen W_O, pattern, W_V and ln1.

    The pullback of a frozen norm is linear, so its weight and centring are multiplied into W_V once.

    Args:
        layer: of the trace.
        dtype: of the products; bfloat16 is faster where the processor multiplies it, and rounds.
    """

    def __init__(self, layer: LayerTrace, dtype: torch.dtype) -> None:
        w = layer.weights
        self.n_heads, self.d_head, d = w.W_O.shape
        self.n_kv = w.W_V.shape[0]
        W_V = w.W_V.transpose(1, 2).reshape(self.n_kv * self.d_head, d)
        self.from_v = w.ln1.pullback(W_V, W_V.new_ones(1)).to(dtype)
        self.to_z = w.W_O.reshape(self.n_heads * self.d_head, d).to(dtype)
        self.pattern = layer.mixing.to(dtype)
        self.scale = layer.ln1_scale.to(dtype)

    def add_pullback(self, R: Tensor) -> None:
        """Add to gradients R (P, n, d) at attention's output what they become at the stream before it."""
        P, n, d = R.shape
        at_z = R.reshape(P * n, d).to(self.to_z.dtype) @ self.to_z.T
        at_z = at_z.view(P, n, self.n_heads, self.d_head).permute(2, 0, 1, 3).reshape(self.n_heads, P, -1)
        at_v = self.pattern[:, :P, :P].transpose(1, 2) @ at_z
        self._add_from_values(R, at_v.view(self.n_heads, P, n, self.d_head))

    def add_pullback_of(self, R: Tensor, vectors: Tensor, pos: Tensor) -> None:
        """The same where each gradient stands at one position only: vectors (n, d) at positions (n)."""
        P, n, _ = R.shape
        at_z = (vectors.to(self.to_z.dtype) @ self.to_z.T).view(n, self.n_heads, self.d_head)
        from_pos = self.pattern[:, pos, :P].transpose(1, 2)
        self._add_from_values(R, from_pos[..., None] * at_z.transpose(0, 1)[:, None])

    def _add_from_values(self, R: Tensor, at_v: Tensor) -> None:
        """at_v (n_heads, P, n, d_head), at the values of every query head."""
        P, n, d = R.shape
        if self.n_kv < self.n_heads:  # query heads share a key/value head
            at_v = at_v.unflatten(0, (self.n_kv, -1)).sum(1)
        scaled = at_v.new_empty(P, n, self.n_kv, self.d_head)
        torch.div(at_v.permute(1, 2, 0, 3), self.scale[:P, :, None, None], out=scaled)
        flat, scaled = R.view(P * n, d), scaled.view(P * n, -1)
        if R.dtype == scaled.dtype:
            flat.addmm_(scaled, self.from_v)
        else:
            flat.add_(scaled @ self.from_v)
