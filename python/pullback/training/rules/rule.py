"""What every rule answers, and what its penalty hands back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from pullback.ops import SparseActivations, segment_outer
from pullback.ops.screen import Screen
from pullback.training.loss import Reconstruction
from pullback.training.recipe import Recipe
from pullback.training.share import WHOLE, Share
from pullback.transcoders import Activation, FeatureLayer


class Slots(NamedTuple):
    """The same number of features in every row."""

    values: Tensor
    """Float[Tensor, "n k"]; 0 in an empty slot"""
    indices: Tensor
    """Int32[Tensor, "n k"]"""

    def entries(self, n_features: int, empty: bool = True) -> SparseActivations:
        """Every slot an entry, empty ones too, which waits for no device; or without these, where they are many."""
        if not empty:
            return SparseActivations.from_topk(*self, n_features)
        n, k = self.values.shape
        indptr = torch.arange(n + 1, device=self.values.device) * k
        return SparseActivations(indptr, self.indices.flatten(), self.values.flatten(), n_features)


Batch: TypeAlias = Slots | SparseActivations


class Penalty(NamedTuple):
    """What a rule adds to the squared error of n rows, with the derivatives of both."""

    loss: Tensor
    """Float64[Tensor, ""]: the penalty alone, of the features held here"""
    dvalues: Tensor
    """Float[Tensor, "nnz"]: derivative of error and penalty by the pre-activation of every entry"""
    by_norm: Tensor | None = None
    """Float[Tensor, "F"]: derivative of the penalty by the norms of `Rule.norms`"""
    by_mean: Tensor | None = None
    """Float[Tensor, "F"]: derivative of the penalty by the pre-activation of the mean row"""
    by_weights: Mapping[str, Tensor] = {}
    """derivatives of both by the rule's own weights"""


class Rule(ABC):
    """One way to choose the features of a token, and how it learns.

    Attributes:
        revives: the auxiliary loss of Gao et al. revives dead features unless it is switched off; with other rules it
            has to be asked for.
        weights: weights of its own, by name, one number a feature each, which the optimizer moves.
        share: the features that are held here.
        norms: the size of what each feature writes, Float[Tensor, "F"], by which penalties are weighted.
    """

    revives = False

    def __init__(self, trained: Activation, recipe: Recipe, share: Share = WHOLE) -> None:
        self.trained = trained
        self.recipe = recipe
        self.share = share
        self.weights: dict[str, Tensor] = {}
        self.norms: Callable[[FeatureLayer], Tensor] = row_norms

    def activation(self) -> Activation:
        """The rule for inference, as learned so far."""
        return self.trained

    @abstractmethod
    def encode(self, tc: FeatureLayer, x: Tensor, step: int, screen: Screen | None = None) -> Batch:
        """The entries of a batch x Float[Tensor, "n d_in"] at step 0, 1, ..."""

    def activations(self, batch: Batch, tc: FeatureLayer) -> SparseActivations:  # noqa: ARG002
        """The entries with the values that are decoded, zeros among them."""
        assert isinstance(batch, SparseActivations)
        return batch

    def reconstruct(self, batch: Batch, tc: FeatureLayer, target: Tensor) -> Reconstruction:
        """What they make of the target Float[Tensor, "n d_out"]."""
        return Reconstruction.of_entries(self.activations(batch, tc), tc.W_dec, tc.b_dec, target, self.share)

    def penalty(
        self,
        batch: Batch,  # noqa: ARG002
        made: Reconstruction,  # noqa: ARG002
        by_value: Tensor,  # noqa: ARG002
        tc: FeatureLayer,  # noqa: ARG002
        x: Tensor,  # noqa: ARG002
        dead: Tensor,  # noqa: ARG002
        step: int,  # noqa: ARG002
    ) -> Penalty | None:
        """What the rule adds to the loss, None for nothing.

        Args:
            batch, made: of `encode` and `reconstruct`.
            by_value: Float[Tensor, "nnz"], the derivative of the squared error by every entry's activation.
            x: Float[Tensor, "n d_in"].
            dead: Int64[Tensor, "n_dead"], the features that have not fired for long.
        """
        return None

    def after(self, batch: Batch, health: Tensor, tc: FeatureLayer) -> None:  # noqa: B027  (most rules have nothing to do)
        """Once the weights have moved; they have not where the scalar `health` is not finite."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs of the rule; the tensors are the live ones."""
        return dict(self.weights)

    def load_state_dict(self, state: Mapping[str, Any], tc: FeatureLayer) -> None:  # noqa: ARG002
        """Continue from a `state_dict`."""
        for name, weight in self.weights.items():
            weight.copy_(state[name])


def row_norms(tc: FeatureLayer) -> Tensor:
    """Float[Tensor, "F"]: ||W_dec[f]||"""
    return tc.W_dec.flatten(1).norm(dim=1)


def feature_sums(acts: SparseActivations, values: Tensor) -> Tensor:
    """Float[Tensor, "F"]: the values Float[Tensor, "nnz"] of every feature's entries, added up in order of row."""
    ones = values.new_ones(acts.n_rows, 1)
    return segment_outer(acts.indptr, acts.indices, values, ones, acts.n_features)[:, 0]
