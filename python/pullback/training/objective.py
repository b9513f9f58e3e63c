"""The loss of one batch and its gradient: squared error, penalty, and what revives dead features."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pullback.training.ghost import ghost_part
from pullback.training.loss import Part, Reconstruction, auxk_reconstruction, sparse_gradient
from pullback.training.optimizer import Gradient
from pullback.training.recipe import Recipe
from pullback.training.rules import Batch, Penalty, Rule
from pullback.transcoders import Activation, FeatureLayer, ReLU

AUXK_ALPHA = 1 / 32  # of Gao et al.


class StepStats(NamedTuple):
    """Of the last batch, as scalar tensors that cost no synchronisation until they are read."""

    fvu: Tensor
    """fraction of variance unexplained"""
    l0: Tensor
    """mean number of active features"""
    dead: Tensor
    """share of features that have not fired for `dead_feature_window` tokens"""
    auxk: Tensor
    """auxiliary loss before its weight, 0 without dead features"""


class Dead(NamedTuple):
    """Features that have not fired for long."""

    ids: Tensor
    """Int64[Tensor, "n_dead"], ascending, of those held here"""
    n: int
    """how many in all"""
    of: int
    """features in all"""


class Objective:
    """The loss that a step lowers.

    Args:
        rule: the sparsity rule, with its recipe.
        auxk_alpha, auxk_k: the auxiliary loss, see TrainConfig; its weight with the default filled in.
    """

    def __init__(self, rule: Rule, auxk_alpha: float | None, auxk_k: int) -> None:
        self.rule = rule
        self.auxk_alpha = (AUXK_ALPHA if rule.revives else 0.0) if auxk_alpha is None else auxk_alpha
        self.auxk_k = auxk_k
        self.loss = loss_of(rule.trained, rule.recipe)

    def __call__(
        self, tc: FeatureLayer, x: Tensor, y: Tensor, batch: Batch, variance: Tensor, dead: Dead, step: int
    ) -> tuple[Tensor, Gradient, StepStats, Reconstruction]:
        """Of the entries that the rule found in a batch. Loss and figures are those of all features; the sparse part of
        the gradient, and the reconstruction's entries, are those of the features held here.

        Args:
            x: Float[Tensor, "n d_in"].
            y: Float[Tensor, "n d_out"].
            variance: Float64[Tensor, ""], of targets so far.
            dead: the features that have not fired for long.
            step: 0, 1, ...

        Returns:
            the loss, its gradient, the figures, and the reconstruction.
        """
        n, share = len(x), self.rule.share
        target = y if tc.W_skip is None else torch.addmm(y, x, tc.W_skip.T, alpha=-1)
        made = self.rule.reconstruct(batch, tc, target)
        scale = self.scale(y, variance)
        weight = 2 / scale
        loss, main = made.loss(scale), Part.of(made, weight)
        parts = [main]
        penalty = self.rule.penalty(batch, made, main.dvalues, tc, x, dead.ids, step)
        if penalty is not None:
            loss = loss + share.sum(penalty.loss)
            parts = [main._replace(dvalues=penalty.dvalues)]
            if penalty.by_norm is not None:
                parts.append(norm_part(along_rows(penalty.by_norm, self.rule.norms(tc)), tc))
            if penalty.by_mean is not None:
                parts.append(mean_part(penalty.by_mean, tc, n))
        auxk = torch.zeros_like(loss)
        if dead.n > 0 and self.auxk_alpha > 0:
            # Weighted down while fewer than auxk_k features are dead.
            k = min(self.auxk_k, dead.n)
            aux = auxk_reconstruction(tc, x, made.residual, dead.ids, k, share, relu=self.rule.revives)
            auxk = aux.loss(scale) * (k / self.auxk_k)
            parts.append(Part.of(aux, weight * self.auxk_alpha * (k / self.auxk_k)))
            loss = loss + self.auxk_alpha * auxk
        if dead.n > 0 and self.loss == "reference" and isinstance(self.rule.trained, ReLU):
            left = -made.residual if self.rule.recipe.residual == "target" else x - (made.residual + y)
            errors = made.residual.square() * (y.numel() / scale).to(x.dtype)[:, None]
            ghost, part = ghost_part(tc, x, left, errors, dead.ids, step)
            loss = loss + ghost
            parts.append(part)
        # The mean row stands below the others, for what pulls at the pre-activations of all rows alike.
        rows = with_mean_row(x, penalty)
        residual, factor = made.g[:n], weight.to(x.dtype)
        if factor.ndim == 1:
            residual, factor = residual * factor[:, None], torch.ones_like(loss, dtype=x.dtype)
        gradient = Gradient(
            sparse_gradient(rows, parts, tc.d_sae),
            b_dec=residual.sum(0) * factor,
            W_skip=None if tc.W_skip is None else residual.T @ x * factor,
            more={} if penalty is None else penalty.by_weights,
        )
        stats = StepStats(
            fvu=(made.whole.sum() / (n * variance)).to(x.dtype),
            l0=share.sum(made.values.count_nonzero()).to(x.dtype) / n,
            dead=torch.full_like(loss, dead.n / dead.of, dtype=x.dtype),
            auxk=auxk.to(x.dtype),
        )
        return loss.to(x.dtype), gradient, stats, made

    def scale(self, y: Tensor, variance: Tensor) -> Tensor:
        """What the squared error is divided by: Float64[Tensor, ""], or Float64[Tensor, "n"] for one of every row."""
        if self.loss == "reference":
            norms = y.double().norm(dim=1)
            return norms.clamp(min=torch.finfo(y.dtype).eps) * y.numel()
        return len(y) * (variance if self.loss == "fvu" else torch.ones_like(variance))


def loss_of(trained: Activation, recipe: Recipe) -> str:
    """The recipe's loss, with its default filled in."""
    return recipe.loss or ("paper" if isinstance(trained, ReLU) else "fvu")


def with_mean_row(x: Tensor, penalty: Penalty | None) -> Tensor:
    """The rows, with their mean below them where a penalty pulls at its pre-activations."""
    return x if penalty is None or penalty.by_mean is None else torch.cat([x, x.mean(0, keepdim=True)])


def along_rows(by_norm: Tensor, norms: Tensor) -> Tensor:
    """Derivatives by the rows, of which this is the factor, from those by their norms: Float[Tensor, "F"]."""
    return torch.where(norms > 0, by_norm / norms, 0)


def norm_part(along: Tensor, tc: FeatureLayer) -> Part:
    """The gradient along[f] W_dec[f] of a penalty by decoder norms: its g are decoder rows."""
    ids = along.nonzero().flatten()
    places = torch.arange(len(ids), dtype=torch.int32, device=ids.device)
    return Part(ids.int(), places, torch.zeros_like(along[ids]), along[ids], tc.W_dec.flatten(1)[ids])


def mean_part(by_mean: Tensor, tc: FeatureLayer, n: int) -> Part:
    """The gradient of a penalty by the pre-activations of the mean row, which stands below the n of the batch."""
    ids = by_mean.nonzero().flatten()
    places = torch.full_like(ids, n, dtype=torch.int32)
    nothing = torch.zeros_like(by_mean[ids])
    return Part(ids.int(), places, by_mean[ids], nothing, tc.W_dec.flatten(1).new_zeros(n + 1, tc.W_dec[0].numel()))
