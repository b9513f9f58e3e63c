"""BatchTopK: the k n largest of a batch of n rows; for inference, a threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pullback.ops import SparseActivations, batch_topk_encode
from pullback.ops.screen import Screen
from pullback.training.recipe import Recipe
from pullback.training.rules.rule import Batch, Rule
from pullback.training.share import WHOLE, Share
from pullback.transcoders import BatchTopK, FeatureLayer


class BatchTopKRule(Rule):
    """Bussmann, Leask, Nanda, arXiv 2412.06410.

    The threshold is an exponential mean of the smallest value kept in each batch, over the weight of its terms, so that
    the first batches count as much as they should:

        threshold = sum_t r (1 - r)^(T - t) min_t / (1 - (1 - r)^T),      r = topk_threshold_lr
    """

    trained: BatchTopK
    revives = True

    def __init__(self, trained: BatchTopK, recipe: Recipe, device: torch.device, share: Share = WHOLE) -> None:
        super().__init__(trained, recipe, share)
        self._sum, self._mass = torch.zeros(2, dtype=torch.float64, device=device)

    def activation(self) -> BatchTopK:
        mass = float(self._mass)
        return BatchTopK(self.trained.k, float(self._sum) / mass if mass > 0 else self.trained.threshold)

    def encode(self, tc: FeatureLayer, x: Tensor, step: int, screen: Screen | None = None) -> SparseActivations:
        k = self.recipe.k_at(step, self.trained.k)
        candidates = batch_topk_encode(x, tc.W_enc, tc.b_enc, self.share.batch_k(k, len(x)), screen)
        return self.share.best_of_batch(candidates, k)

    def after(self, batch: Batch, health: Tensor, tc: FeatureLayer) -> None:  # noqa: ARG002
        assert isinstance(batch, SparseActivations)
        own = batch.values.min() if batch.nnz else batch.values.new_full((), math.inf)
        smallest = self.share.smallest(own.double())
        good = health.isfinite() & smallest.isfinite()
        rate = self.recipe.topk_threshold_lr * good.double()
        self._sum.lerp_(torch.where(good, smallest, 0), rate)
        self._mass.lerp_(torch.ones_like(self._mass), rate)

    def state_dict(self) -> dict[str, Any]:
        return {"threshold_sum": self._sum, "threshold_mass": self._mass}

    def load_state_dict(self, state: Mapping[str, Any], tc: FeatureLayer) -> None:  # noqa: ARG002
        self._sum.copy_(state["threshold_sum"])
        self._mass.copy_(state["threshold_mass"])
