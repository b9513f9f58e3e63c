"""Attention outputs of one prompt as features of autoencoders (Ge et al. 2024; METHODS 2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from pullback.attribution.encoded import by_prompt, encoded
from pullback.lens import LayerTrace
from pullback.ops import SparseActivations
from pullback.transcoders import LayeredDictionary


@dataclass(frozen=True)
class AttentionFeatures:
    """attn_out[l] = sum_i z_i W_dec_i + errors[l] + bias[l] (+ zeroed[l]), exactly, at every position, in some layers.

    The features read attn_out: what heads bring through frozen patterns, and `constant`, which they write anyhow.
    """

    saes: LayeredDictionary | None = None  # None: of no layer
    acts: dict[int, SparseActivations] = field(default_factory=dict)  # layer -> T rows
    errors: dict[int, Tensor] = field(default_factory=dict)  # layer -> (T, d)
    bias: dict[int, Tensor] = field(default_factory=dict)  # layer -> (T, d): b_dec
    constant: dict[int, Tensor] = field(default_factory=dict)  # layer -> (T, d)
    zeroed: dict[int, Tensor] = field(default_factory=dict)  # layer -> (T, d): what zero_positions took away

    @property
    def sets(self) -> LayeredDictionary:
        assert self.saes is not None, "asked for features of attention where there are none"
        return self.saes

    @staticmethod
    def of(
        saes: LayeredDictionary | None, layers: Sequence[LayerTrace], constant: Sequence[Tensor], keep: Tensor
    ) -> AttentionFeatures:
        """Of Q prompts of T positions, with their dimension in front and Q T rows of features; layers are stacked, and
        so is what they write anyhow, (Q, T, d); nothing is left of positions where `keep` (T, 1) is 0."""
        if saes is None:
            return AttentionFeatures()
        out = {i: layers[i].attn_out for i in saes.layers}
        acts = {i: encoded(saes, i, y, keep) for i, y in out.items()}
        saes = saes.holding(acts)
        bias = {i: saes.b_dec(i).expand_as(y) for i, y in out.items()}
        rest = {i: y - bias[i] - saes.decode(acts, i).view_as(y) for i, y in out.items()}
        return AttentionFeatures(
            saes=saes,
            acts=acts,
            errors={i: r * keep for i, r in rest.items()},
            bias=bias,
            constant={i: constant[i] for i in out},
            zeroed={} if bool(keep.all()) else {i: r * (1 - keep) for i, r in rest.items()},
        )

    def of_prompts(self, n: int) -> list[AttentionFeatures]:
        """Each of n prompts."""

        def own(by_layer: dict[int, Tensor], q: int) -> dict[int, Tensor]:
            return {i: value[q] for i, value in by_layer.items()}

        return [
            AttentionFeatures(
                saes=self.saes,
                acts=acts,
                errors=own(self.errors, q),
                bias=own(self.bias, q),
                constant=own(self.constant, q),
                zeroed=own(self.zeroed, q),
            )
            for q, acts in enumerate(by_prompt(self.acts, n))
        ]
