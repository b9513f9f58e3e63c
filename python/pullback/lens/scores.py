"""How the heads of one layer score on one prompt: as a bilinear form of the stream, once norms are frozen.

score[t, s] = scale * <q_t, k_s> before any soft cap; q and k are linear in what ln1 reads, through W_Q and W_K, norms
of queries and keys with frozen denominators, and rotary positions. Read from the model and compared with its pattern.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pullback.lens import record as rec
from pullback.lens.heads import ROTARY_HOOKS, rotary_tables, score_scale
from pullback.lens.structure import tolerance
from pullback.lens.trace import LayerTrace, Trace
from pullback.lens.weights import Norm, read_norm

if TYPE_CHECKING:
    from pullback.lens.adapter import Lens


@dataclass(frozen=True)
class Rotary:
    """Rotation of the first r dimensions of a head by position: x cos + J x sin, J a quarter turn of pairs that lie
    side by side, or half of r apart."""

    cos: Tensor  # (T, r)
    sin: Tensor  # (T, r)
    adjacent: bool

    def __call__(self, x: Tensor, pos: Tensor) -> Tensor:
        """Vectors (n, d_head) at positions (n)."""
        r = self.cos.shape[1]
        turned, rest = x[:, :r], x[:, r:]
        if self.adjacent:
            quarter = torch.stack((-turned[:, 1::2], turned[:, ::2]), -1).flatten(-2)
        else:
            quarter = torch.cat((-turned[:, r // 2 :], turned[:, : r // 2]), -1)
        return torch.cat((turned * self.cos[pos] + quarter * self.sin[pos], rest), -1)


@dataclass(frozen=True)
class Projection:
    """One side of the scores of one head: from what ln1 gives to queries or keys."""

    W: Tensor  # (d, d_head)
    b: Tensor  # (d_head)
    norm: Norm
    norm_scale: Tensor  # (T, 1)
    rotary: Rotary | None

    def _turned(self, x: Tensor, pos: Tensor) -> Tensor:
        return x if self.rotary is None else self.rotary(x, pos)

    def linear(self, x: Tensor, pos: Tensor) -> Tensor:
        """What vectors x (n, d) add to the projection at positions (n), (n, d_head)."""
        return self._turned(self.norm.linear(x @ self.W) / self.norm_scale[pos], pos)

    def constant(self, pos: Tensor) -> Tensor:
        """What it is at positions (n) of an input of zeros, (n, d_head)."""
        constant = self.norm.linear(self.b) / self.norm_scale[pos] + self.norm.bias_vector(self.b)
        return self._turned(constant, pos)


@dataclass(frozen=True)
class HeadScores:
    """One head of one layer. `query` and `key` apply to what ln1 gives; ln1 itself is the layer's."""

    layer: LayerTrace
    query: Projection
    key: Projection
    scale: float
    soft_cap: float | None

    def read(self, side: Projection, x: Tensor, pos: Tensor) -> Tensor:
        """What vectors x (n, d) of the stream add to the side at positions (n), (n, d_head)."""
        return side.linear(self.layer.weights.ln1.linear(x) / self.layer.ln1_scale[pos], pos)

    def norm_bias(self, side: Projection, pos: Tensor) -> Tensor:
        """What ln1's bias adds to the side at positions (n), (n, d_head)."""
        bias = self.layer.weights.ln1.bias_vector(self.layer.x_pre[0])
        return side.linear(bias.expand(len(pos), -1), pos)

    def whole(self, side: Projection) -> Tensor:
        """Queries or keys of the prompt, (T, d_head)."""
        pos = torch.arange(len(self.layer.x_pre), device=self.layer.x_pre.device)
        ln1 = self.layer.weights.ln1(self.layer.x_pre, self.layer.ln1_scale)
        return side.linear(ln1, pos) + side.constant(pos)

    def scores(self) -> Tensor:
        """Before any soft cap and mask, (T_dst, T_src)."""
        return self.scale * self.whole(self.query) @ self.whole(self.key).T

    def capped(self, scores: Tensor) -> Tensor:
        return scores if self.soft_cap is None else self.soft_cap * torch.tanh(scores / self.soft_cap)


def head_scores(lens: Lens, t: Trace, layer: int, head: int) -> HeadScores:
    """One head on a traced prompt.

    Raises ValueError where the model's pattern is not the softmax of these scores: biases between positions (ALiBi,
    T5), norms or rotations that are not known here.
    """
    attn = lens.model.blocks[layer].attn
    dtype = lens.compute_dtype
    seen = _recorded(lens, t, layer)
    tables = rotary_tables(lens, attn, seen)
    rotary = None if tables is None else Rotary(*tables)
    group = lens.n_heads // t.layers[layer].weights.W_V.shape[0]

    def side(letter: str, n: int, at: int) -> Projection:
        W = getattr(attn, f"_W_{letter}", getattr(attn, f"W_{letter}")).detach().to(dtype)
        b = getattr(attn, f"_b_{letter}", getattr(attn, f"b_{letter}", None))
        b = W.new_zeros(n, W.shape[-1]) if b is None else b.detach().to(dtype).reshape(n, -1)
        norm = read_norm(getattr(attn, f"{letter.lower()}_norm", None)).to(dtype)
        scale = seen.get(f"{letter.lower()}_norm.hook_scale")
        of_head = t.embed.new_ones(t.n_pos, 1) if scale is None else _of_head(scale.to(dtype), norm, at, t.n_pos)
        return Projection(W[at], b[at], _norm_of_head(norm, at, W.shape[-1]), of_head, rotary)

    found = HeadScores(
        layer=t.layers[layer],
        query=side("Q", lens.n_heads, head),
        key=side("K", lens.n_heads // group, head // group),
        scale=score_scale(attn, lens.d_head),
        soft_cap=_soft_cap(lens, attn),
    )
    _verify(lens, t, found, layer, head)
    return found


def _recorded(lens: Lens, t: Trace, layer: int) -> dict[str, Tensor]:
    """Denominators of norms of queries and keys, and the tables of rotary positions, where the model shows them."""
    prefix = f"blocks.{layer}.attn."
    wanted = ("q_norm.hook_scale", "k_norm.hook_scale", *ROTARY_HOOKS)
    there = [name for name in wanted if prefix + name in rec.hook_names(lens.model)]
    if not there:
        return {}
    with torch.no_grad():
        edits = rec.exact_norms(lens.model)
        seen = rec.record_only(lens.model, t.tokens[None], [prefix + name for name in there], edits)
    return {name: seen[prefix + name] for name in there}


def _of_head(scale: Tensor, norm: Norm, head: int, T: int) -> Tensor:
    """The denominator of one head, (T, 1), of (1, heads, T, 1); of (1, T, heads, 1) where each head has weights of its
    own; of (1, T, 1) where all heads share it; of (T heads, 1) in a HookedTransformer."""
    if scale.ndim == 2:
        return scale.view(T, -1, 1)[:, head]
    if scale.ndim == 3:
        return scale[0]
    return scale[0, :, head] if norm.w is not None and norm.w.ndim == 2 else scale[0, head]


def _norm_of_head(norm: Norm, head: int, d_head: int) -> Norm:
    """The part of weights for all heads, (heads, d_head) or (heads d_head), that one head has."""

    def part(weight: Tensor | None) -> Tensor | None:
        return weight if weight is None or weight.numel() == d_head else weight.reshape(-1, d_head)[head]

    return Norm(norm.kind, part(norm.w), part(norm.b))


def _soft_cap(lens: Lens, attn: Any) -> float | None:
    cap = getattr(getattr(attn, "original_component", None), "attn_logit_softcapping", None)
    cap = float(getattr(lens.model.cfg, "attn_scores_soft_cap", None) or -1.0) if cap is None else float(cap)
    return cap if cap > 0 else None


def _verify(lens: Lens, t: Trace, found: HeadScores, layer: int, head: int) -> None:
    """The pattern must be the softmax of the scores over what it attends to. Models take it in float32 at best."""
    pattern = t.layers[layer].pattern[head]
    seen = pattern > 0
    ours = torch.softmax(found.capped(found.scores()).masked_fill(~seen, -torch.inf), -1)
    error = float((ours - pattern / pattern.sum(-1, keepdim=True)).abs().nan_to_num(nan=torch.inf).max())
    if not error <= max(1e-5, tolerance(lens.dtype)):
        raise ValueError(
            f"{t.model_name}: the pattern of head {head} of layer {layer} is not the softmax of the scores that its "
            f"queries and keys give (off by {error:.1e}); this kind of attention is not supported yet"
        )
