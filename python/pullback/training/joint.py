"""The loss of one batch of a cross-layer transcoder and its gradient.

    loss = sum_dst ||yhat_dst - y_dst||^2 / scale_dst + penalties
    yhat_dst = sum_{l <= dst} z_l W_dec[l -> dst] + b_dec[dst] (+ x_dst W_skip[dst]^T)

The residuals of all layers stand side by side. To layer l, whose decoders stand side by side too, they are what one
wide residual is to a transcoder, so that all else is as in `objective`: sparse entries, penalties by the norm of all
that a feature writes, and dead features that reconstruct what is left in all layers they write to. Where processes
share the features, each knows what its own write to all layers, and the residuals are made of their sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pullback.ops import SparseActivations
from pullback.training.accumulate import Found
from pullback.training.learner import Learner
from pullback.training.loss import Part, Reconstruction, encode_rows, sparse_gradient
from pullback.training.objective import Dead, StepStats, mean_part, norm_part, with_mean_row
from pullback.training.optimizer import Gradient
from pullback.training.rules import Batch, Penalty, Slots
from pullback.training.wiring import Blocks, Wiring
from pullback.transcoders import SourceLayer


class JointObjective:
    """The loss that a step of all layers lowers, on one batch.

    Args:
        learners: of the layers, ascending.
        wiring: of their features.
        xs, ys: Float[Tensor, "n d_in"] and Float[Tensor, "n d"] of every layer.
        batches: the entries that the rules found.
        variances: Float64[Tensor, ""], of the targets so far.
    """

    def __init__(
        self,
        learners: Sequence[Learner[SourceLayer]],
        wiring: Wiring,
        xs: Sequence[Tensor],
        ys: Sequence[Tensor],
        batches: Sequence[Batch],
        variances: Sequence[Tensor],
    ) -> None:
        self.learners, self.wiring = learners, wiring
        self.xs, self.batches, self.variances = xs, batches, variances
        self.share = learners[0].share
        self.n, self.d = ys[0].shape
        self.acts = [one.rule.activations(batch, one.features) for one, batch in zip(learners, batches, strict=True)]
        scales = [one.objective.scale(y, v) for one, y, v in zip(learners, ys, variances, strict=True)]
        self.scales = torch.stack(scales)
        self.factors = (2 / self.scales).to(ys[0].dtype)
        self.residual = Blocks.of(self._residual(ys), self.d)
        self.g = self._scaled(self.residual.matrix, self.factors)
        self.squares = self.residual.squares()
        self.parts: list[list[Part]] = [[] for _ in learners]
        self.along: list[Tensor | None] = [None for _ in learners]

    def found(self) -> list[Found]:
        """Of each layer: its share of the loss, the gradient by its weights, the figures, and what fired."""
        shares = [self._layer(i) for i in range(len(self.learners))]
        for i, along in enumerate(self.along):
            if along is not None:
                self.parts[i].append(norm_part(along, self.learners[i].features))
        return [
            Found.of(self.n, loss.to(self.factors.dtype), self._gradient(i, penalty), stats, made)
            for i, (loss, penalty, stats, made) in enumerate(shares)
        ]

    def _residual(self, ys: Sequence[Tensor]) -> Tensor:
        blocks = []
        for one, x, y in zip(self.learners, self.xs, ys, strict=True):
            own = one.features
            left = own.b_dec - y
            blocks.append(left if own.W_skip is None else torch.addmm(left, x, own.W_skip.T))
        left = torch.cat(blocks, dim=1)
        residual = left if self.share.first else torch.zeros_like(left)
        for i, acts in enumerate(self.acts):
            residual[:, i * self.d :] += self.wiring.write(i, acts)
        return self.share.sum(residual)

    def _scaled(self, matrix: Tensor, factors: Tensor) -> Blocks:
        """Every block times its factor."""
        return Blocks.of(matrix * factors.repeat_interleave(self.d), self.d)

    def _layer(self, i: int) -> tuple[Tensor, Penalty | None, StepStats, Reconstruction]:
        """The share of one layer, whose parts of the gradient are added to those of the layers they belong to."""
        one, acts, batch, x = self.learners[i], self.acts[i], self.batches[i], self.xs[i]
        g, dead = self.g.since(i), one.dead()
        dots = self._pulled(i, acts, g, empty=isinstance(batch, Slots))
        square = self.squares[i]
        made = Reconstruction(
            acts.indices, acts.values, acts.rows().int(), dots, g.matrix, self.residual.blocks[i], square, square
        )
        loss, dvalues = square.sum() / self.scales[i], dots
        penalty = one.rule.penalty(batch, made, dots, one.features, x, dead.ids, one.n_steps)
        if penalty is not None:
            loss, dvalues = loss + self.share.sum(penalty.loss), penalty.dvalues
            if penalty.by_mean is not None:
                self.parts[i].append(mean_part(penalty.by_mean, one.features, self.n))
            if penalty.by_norm is not None:
                for m, along in self.wiring.along(i, penalty.by_norm).items():
                    before = self.along[m]
                    self.along[m] = along if before is None else before + along
        self._add(i, acts, dvalues, g)
        auxk = torch.zeros_like(loss)
        if dead.n > 0 and one.auxk_alpha > 0:
            auxk = self._auxk(i, dead)
            loss = loss + one.auxk_alpha * auxk
        stats = StepStats(
            fvu=(square.sum() / (self.n * self.variances[i])).to(x.dtype),
            l0=self.share.sum(acts.values.count_nonzero()).to(x.dtype) / self.n,
            dead=torch.full_like(loss, dead.n / dead.of, dtype=x.dtype),
            auxk=auxk.to(x.dtype),
        )
        return loss, penalty, stats, made

    def _auxk(self, i: int, dead: Dead) -> Tensor:
        """The best dead features of a layer against what is left in all layers they write to (arXiv 2406.04093)."""
        one = self.learners[i]
        k, relu = min(one.auxk_k, dead.n), one.rule.revives
        weight = k / one.auxk_k  # less while fewer than auxk_k features are dead
        values, ids = encode_rows(one.features, self.xs[i], dead.ids, min(k, len(dead.ids)), relu)
        acts = Slots(self.share.best(values, k, relu), ids).entries(one.features.d_sae, empty=self.share.whole)
        left = Blocks.of(self.share.sum(self.wiring.write(i, acts)) + self.residual.since(i).matrix, self.d)
        g = self._scaled(left.matrix, self.factors[i:] * (one.auxk_alpha * weight))
        self._add(i, acts, self._pulled(i, acts, g, empty=True), g)
        return (left.squares().sum(1) / self.scales[i:]).sum() * weight

    def _pulled(self, i: int, acts: SparseActivations, g: Blocks, empty: bool) -> Tensor:
        dots = self.wiring.pull(i, acts, g)
        return torch.where(acts.values == 0, 0, dots) if empty else dots

    def _add(self, i: int, acts: SparseActivations, dvalues: Tensor, g: Blocks) -> None:
        for m, part in self.wiring.parts(i, acts, dvalues, g).items():
            self.parts[m].append(part)

    def _gradient(self, i: int, penalty: Penalty | None) -> Gradient:
        x, own, g = self.xs[i], self.learners[i].features, self.g.blocks[i]
        return Gradient(
            sparse_gradient(with_mean_row(x, penalty), self.parts[i], own.d_sae),
            b_dec=g.sum(0),
            W_skip=None if own.W_skip is None else g.T @ x,
            more={} if penalty is None else penalty.by_weights,
        )
