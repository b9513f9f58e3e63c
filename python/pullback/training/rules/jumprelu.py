"""JumpReLU with learned thresholds.

z = h [h > theta] jumps at theta, so its derivative by theta is taken in the mean over a window around it, from the
entries of the batch that lie in the window (the straight-through estimator of Rajamanoharan et al., arXiv 2407.14435,
with a rectangle for kernel):

    dz/dh = [h > theta],      dz/dtheta = -theta/eps [|h - theta| < eps/2],      d[h > theta]/dtheta = -1/eps [same]

Entries down to theta - eps/2 are therefore encoded; those below theta have z = 0 and only move theta.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pullback.ops import SparseActivations, threshold_encode
from pullback.ops.screen import Screen
from pullback.training.loss import Reconstruction
from pullback.training.recipe import Recipe
from pullback.training.rules.rule import Batch, Penalty, Rule, feature_sums
from pullback.training.share import WHOLE, Share
from pullback.transcoders import FeatureLayer, JumpReLU


class JumpReLURule(Rule):
    """The weight is log theta, so that theta stays positive; `tc.theta` follows it."""

    trained: JumpReLU

    def __init__(self, trained: JumpReLU, recipe: Recipe, tc: FeatureLayer, share: Share = WHOLE) -> None:
        super().__init__(trained, recipe, share)
        assert tc.theta is not None
        if not bool((tc.theta > 0).all()):
            raise ValueError(
                "training: theta of a JumpReLU must be positive, since its logarithm is learned; got "
                f"{float(tc.theta.min()):.3g}. Start at something like JumpReLU(0.1)"
            )
        self.weights = {"log_theta": tc.theta.log()}
        tc.theta.copy_(self.weights["log_theta"].exp())

    def activation(self) -> JumpReLU:
        return JumpReLU(self.weights["log_theta"].exp())

    def encode(
        self,
        tc: FeatureLayer,
        x: Tensor,
        step: int,  # noqa: ARG002
        screen: Screen | None = None,
    ) -> SparseActivations:
        """The pre-activations above theta - eps/2."""
        assert tc.theta is not None
        return threshold_encode(x, tc.W_enc, tc.b_enc, tc.theta - self.recipe.jumprelu_bandwidth / 2, screen)

    def activations(self, batch: Batch, tc: FeatureLayer) -> SparseActivations:
        assert isinstance(batch, SparseActivations)
        assert tc.theta is not None
        h = batch.values
        z = torch.where(h <= tc.theta[batch.indices.long()], 0, h)
        return SparseActivations(batch.indptr, batch.indices, z, batch.n_features)

    def penalty(
        self, batch: Batch, made: Reconstruction, by_value: Tensor, tc: FeatureLayer, x: Tensor, dead: Tensor, step: int
    ) -> Penalty:
        assert isinstance(batch, SparseActivations)
        assert tc.theta is not None
        recipe, theta, f, z = self.recipe, tc.theta, made.features.long(), made.values
        share, eps = recipe.l0_at(step) / len(x), recipe.jumprelu_bandwidth
        norms = self.norms(tc) if recipe.weight_by_decoder_norm else torch.ones_like(theta)
        by_norm = torch.zeros_like(theta)
        window = ((batch.values - theta[f]) / eps).abs() < 0.5
        if recipe.jumprelu_sparsity_loss_mode == "step":
            loss = share * z.count_nonzero().double()
            by_step = torch.full_like(z, share)
        else:
            scale = recipe.jumprelu_tanh_scale
            tanh = (scale * norms[f] * z).tanh()
            slope = share * scale * (1 - tanh.square())
            loss = share * tanh.double().sum()
            by_value = by_value + slope * norms[f]
            by_step = torch.zeros_like(z)
            by_norm = feature_sums(batch, slope * z)
        by_theta = feature_sums(batch, torch.where(window, -(theta[f] * by_value + by_step) / eps, 0))
        by_h = torch.where(z != 0, by_value, 0)
        by_mean = None
        if recipe.pre_act_loss_coefficient > 0 and len(dead) > 0:
            gap, beyond, share_beyond = _below_theta(batch, z != 0, tc, x)
            weight = torch.zeros_like(theta).index_fill_(0, dead, recipe.pre_act_loss_coefficient)
            by_norm = by_norm + weight * gap
            weight = weight * norms
            loss = loss + (weight * gap).double().sum()
            by_h, by_mean = by_h + weight[f] * beyond, -weight
            by_theta = by_theta + weight * (1 - share_beyond)
        by_norm = by_norm if recipe.weight_by_decoder_norm else None
        return Penalty(loss, by_h, by_norm, by_mean, {"log_theta": theta * by_theta})

    def after(self, batch: Batch, health: Tensor, tc: FeatureLayer) -> None:  # noqa: ARG002
        assert tc.theta is not None
        tc.theta.copy_(self.weights["log_theta"].exp())

    def load_state_dict(self, state: Mapping[str, Any], tc: FeatureLayer) -> None:
        super().load_state_dict(state, tc)
        assert tc.theta is not None
        tc.theta.copy_(self.weights["log_theta"].exp())


def _below_theta(acts: SparseActivations, active: Tensor, tc: FeatureLayer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How far features lie below theta, without their pre-activations: theta - h is linear in the rows, so its mean is
    that of the mean row, and max(theta - h, 0) differs from it at active entries only.

    Returns:
        gap Float[Tensor, "F"], the mean over rows of max(theta - h, 0); beyond Float[Tensor, "nnz"], 1/n where active;
        share_beyond Float[Tensor, "F"], the share of rows a feature is active in.
    """
    assert tc.theta is not None
    beyond = active.to(x.dtype) / len(x)
    above = feature_sums(acts, beyond * (acts.values - tc.theta[acts.indices.long()]))
    return tc.theta - (tc.W_enc @ x.mean(0) + tc.b_enc) + above, beyond, feature_sums(acts, beyond)
