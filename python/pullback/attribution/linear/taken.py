"""Targets that stand above an attention, as its heads take them: a few vectors each, not yet at every position."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pullback.attribution.heads import Heads
from pullback.ops.frozen import Placed, add_heads, spread_heads

PATTERNS = 1 << 22  # elements of the patterns of two layers that are kept
SPREADING = 2  # times as long as in a product takes a multiplication that spreads vectors over positions


class Vectors:
    """Vectors (u, d) that are read above one layer's attention, and what becomes of them further down, but for patterns
    and denominators: worked out once for all targets that read them, wherever they stand.

    Args:
        heads: of that attention.
        readers: targets that read one of them, on average.
        standing: whether they read the stream behind attention, so that they stand there as well, or what it writes.
    """

    def __init__(self, heads: Heads, vectors: Tensor, readers: float, *, standing: bool) -> None:
        self.heads, self.readers = heads, readers
        self.by_head = heads.takes(vectors)  # (u, n_heads, d)
        self.standing = vectors if standing else None
        self._at_z: dict[Heads, tuple[Tensor, Tensor | None]] = {}
        self._pairs: dict[Heads, Tensor] = {}

    def at_z_of(self, lower: Heads) -> tuple[Tensor, Tensor | None]:
        """`by_head` and `standing` at what the heads of a lower layer write, (u, n_heads, n_heads d_head)."""
        if lower not in self._at_z:
            standing = None if self.standing is None else self.standing @ lower.to_z.T
            self._at_z[lower] = self.by_head @ lower.to_z.T, standing
        return self._at_z[lower]

    def pairs(self, lower: Heads) -> Tensor:
        """What the heads of a lower layer take of what stands itself, then of what each head takes, head by head of the
        lower layer: (u, n_heads (1 + n_heads), d)."""
        if lower not in self._pairs:
            assert self.standing is not None
            vectors = torch.cat([self.standing[:, None], self.by_head], 1)
            taken = lower.takes(vectors.flatten(0, 1)).unflatten(0, vectors.shape[:2])
            self._pairs[lower] = taken.transpose(1, 2).flatten(1, 2)
        return self._pairs[lower]

    def steps_by_pairs(self, lower: Heads, P: float) -> bool:
        """Whether all pairs of heads take less work through a lower layer's attention than every one of P positions,
        as exactly, and their patterns are small."""
        if self.standing is None or not self.in_precision_of(lower):
            return False
        before = 1 + self.heads.n_heads  # vectors
        pairs, T = lower.n_heads * before, lower.mixing.shape[-1]
        by_pairs = pairs * (lower.d_head / self.readers + SPREADING * P)
        by_position = P * (len(lower.from_v) + SPREADING * (P / 2 + before))
        return by_pairs < by_position and lower.n_prompts * pairs * T * T <= PATTERNS

    def in_precision_of(self, lower: Heads) -> bool:
        """Whether products with the weights of a lower layer are as exact as these vectors."""
        dtypes = {t.dtype for t in (self.by_head, self.standing) if t is not None}
        return dtypes == {lower.to_z.dtype}


class Taken(NamedTuple):
    """Gradients below an attention: n_heads vectors for each target, and one more where the stream is read itself,
    spread over the positions."""

    vectors: Vectors
    at: Placed  # (Q, n)

    def spread(self, P: int) -> Tensor:
        """At the first P positions, (Q P, n, d)."""
        return self._spread(self.vectors.by_head, P, self.vectors.standing)

    def at_z_of(self, lower: Heads, P: int) -> Tensor | None:
        """The same at what the heads of a lower layer write, (Q P n, n_heads d_head), where the few vectors take fewer
        products with W_O than what they have been spread to; None elsewhere, and where products are of less precision
        than the gradients."""
        if not self.vectors.in_precision_of(lower) or 1 + self.vectors.heads.n_heads >= self.vectors.readers * P:
            return None
        by_head, standing = self.vectors.at_z_of(lower)
        return self._spread(by_head, P, standing).flatten(0, 1)

    def add_step(self, lower: Heads, R: Tensor) -> bool:
        """Add to R, which holds these gradients, what they become below a lower layer's attention, where the few
        vectors take less work than what they have been spread to. Returns whether they did."""
        above = self.vectors
        if not above.steps_by_pairs(lower, len(R) / lower.n_prompts):
            return False
        add_heads(R, above.pairs(lower), self.at, lower.two_steps(above.heads), lower.read_scale[..., 0])
        return True

    def _spread(self, by_head: Tensor, P: int, standing: Tensor | None) -> Tensor:
        heads = self.vectors.heads
        return spread_heads(by_head, self.at, heads.spreading, heads.read_scale[..., 0], P, standing)
