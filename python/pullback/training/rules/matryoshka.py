"""Matryoshka: the first m features reconstruct on their own, for several m, so that early features stay general."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pullback.ops import SparseActivations, decode_csr, sampled_dot
from pullback.ops.screen import Screen
from pullback.training.loss import Reconstruction
from pullback.training.rules.rule import Batch, Rule, Slots
from pullback.transcoders import Activation, FeatureLayer


class MatryoshkaRule(Rule):
    """Nested losses over the features that another rule chose (Bussmann et al., arXiv 2503.17547):

        sum_p ||b_dec + sum_{i < m_p} z_i W_dec[i] - y||^2

    A feature of the q-th group, m_{q-1} <= i < m_q, is part of the reconstructions p >= q, so their residuals added up
    are its g: no entry is stored twice.
    """

    revives = True

    def __init__(self, chooser: Rule, widths: Sequence[int]) -> None:
        super().__init__(chooser.trained, chooser.recipe, chooser.share)
        self.chooser = chooser
        held = self.share.features(widths[-1])
        self.widths = tuple(min(max(width - held.start, 0), held.stop - held.start) for width in widths)

    def activation(self) -> Activation:
        return self.chooser.activation()

    def encode(self, tc: FeatureLayer, x: Tensor, step: int, screen: Screen | None = None) -> SparseActivations:
        batch = self.chooser.encode(tc, x, step, screen)
        return SparseActivations.from_topk(*batch, tc.d_sae) if isinstance(batch, Slots) else batch

    def reconstruct(self, batch: Batch, tc: FeatureLayer, target: Tensor) -> Reconstruction:
        assert isinstance(batch, SparseActivations)
        ends = torch.tensor(self.widths, dtype=torch.int32, device=target.device)
        group = torch.bucketize(batch.indices, ends, right=True, out_int32=True)
        chosen = [group == q for q in range(len(self.widths))]
        groups = [batch.where(own) for own in chosen]
        residual, residuals = tc.b_dec - target, []
        for acts in groups:
            residual = residual + self.share.sum(decode_csr(acts, tc.W_dec))
            residuals.append(residual)
        squares = [r.double().square().sum(1) for r in residuals]
        # Of the q-th group: its own residual and all later ones.
        g = torch.stack(residuals).flip(0).cumsum(0).flip(0)
        dots = torch.empty_like(batch.values)
        for own, acts, g_q in zip(chosen, groups, g, strict=True):
            dots[own] = sampled_dot(g_q, tc.W_dec, acts.indptr, acts.indices)
        return Reconstruction(
            batch.indices,
            batch.values,
            batch.rows().int() + group * len(target),
            dots,
            g.flatten(0, 1),
            residual,
            torch.stack(squares).sum(0),
            squares[-1],
        )

    def after(self, batch: Batch, health: Tensor, tc: FeatureLayer) -> None:
        self.chooser.after(batch, health, tc)

    def state_dict(self) -> dict[str, Any]:
        return self.chooser.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], tc: FeatureLayer) -> None:
        self.chooser.load_state_dict(state, tc)
