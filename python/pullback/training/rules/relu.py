"""ReLU with an L1 penalty."""

from __future__ import annotations

from torch import Tensor

from pullback.ops import SparseActivations, threshold_encode
from pullback.ops.screen import Screen
from pullback.training.loss import Reconstruction
from pullback.training.rules.rule import Batch, Penalty, Rule, feature_sums
from pullback.transcoders import FeatureLayer, ReLU


class ReLURule(Rule):
    """The penalty is mean_n l1 sum_i z_i, with z_i ||W_dec[i]|| for z_i if weighted (METHODS 1.1)."""

    trained: ReLU

    def encode(
        self,
        tc: FeatureLayer,
        x: Tensor,
        step: int,  # noqa: ARG002
        screen: Screen | None = None,
    ) -> SparseActivations:
        return threshold_encode(x, tc.W_enc, tc.b_enc, screen=screen)

    def penalty(
        self,
        batch: Batch,
        made: Reconstruction,
        by_value: Tensor,
        tc: FeatureLayer,
        x: Tensor,
        dead: Tensor,  # noqa: ARG002
        step: int,
    ) -> Penalty:
        assert isinstance(batch, SparseActivations)
        share = self.recipe.l1_at(step) / len(x)
        if not self.recipe.weight_by_decoder_norm:
            return Penalty(share * made.values.double().sum(), by_value + share)
        norms = self.norms(tc)
        sums = feature_sums(batch, made.values)
        return Penalty(
            share * (sums * norms).double().sum(),
            by_value + share * norms[made.features.long()],
            by_norm=share * sums,
        )
