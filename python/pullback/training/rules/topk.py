"""TopK: the k largest of every row, in k slots a row."""

from __future__ import annotations

from torch import Tensor

from pullback.ops import SparseActivations, topk_encode
from pullback.ops.screen import Screen
from pullback.training.loss import Reconstruction
from pullback.training.rules.rule import Batch, Rule, Slots
from pullback.transcoders import FeatureLayer, TopK


class TopKRule(Rule):
    """Gao et al., arXiv 2406.04093."""

    trained: TopK
    revives = True

    def encode(self, tc: FeatureLayer, x: Tensor, step: int, screen: Screen | None = None) -> Slots:
        k, relu = self.recipe.k_at(step, self.trained.k), self.trained.relu
        values, ids = topk_encode(x, tc.W_enc, tc.b_enc, min(k, tc.d_sae), relu=relu, screen=screen)
        return Slots(self.share.best(values, k, relu), ids)

    def activations(self, batch: Batch, tc: FeatureLayer) -> SparseActivations:
        assert isinstance(batch, Slots)
        # Most slots of a share are empty: what they held lost against features that are held elsewhere.
        return batch.entries(tc.d_sae, empty=self.share.whole)

    def reconstruct(self, batch: Batch, tc: FeatureLayer, target: Tensor) -> Reconstruction:
        assert isinstance(batch, Slots)
        return Reconstruction.of_slots(*batch, tc.W_dec, tc.b_dec, target, self.trained.relu, self.share)
