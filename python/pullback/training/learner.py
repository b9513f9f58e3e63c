"""The features of one layer as they are trained: what of an optimisation step does not depend on what they are to
reconstruct, or with which others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic

import torch
from torch import Tensor

from pullback.ops.screen import Screen, multiplies_bf16
from pullback.training.accumulate import Found
from pullback.training.initial import center, rare_bias
from pullback.training.objective import Dead, Objective, StepStats
from pullback.training.optimizer import OPTIMIZERS, Gradient
from pullback.training.recipe import Recipe
from pullback.training.rules import Batch, rule_for
from pullback.training.running import Firing, Readback, RunningVariance
from pullback.training.share import WHOLE, Share
from pullback.training.state import load_step_state, step_state
from pullback.transcoders import Activation, FeatureLayer, JumpReLU, ReLU
from pullback.transcoders.layered import Layer

if TYPE_CHECKING:
    from pullback.transcoders import LayeredDictionary


class TrainingDiverged(FloatingPointError):
    """A loss or gradient was NaN or infinite. The update was not applied: the weights are those of the step before.

    Attributes:
        transcoder: the last good weights of the layer, where a single step raised.
        sets: the last good weights of all layers, where `train` raised.
    """

    def __init__(
        self, message: str, transcoder: FeatureLayer | None = None, sets: LayeredDictionary | None = None
    ) -> None:
        super().__init__(message)
        self.transcoder = transcoder
        self.sets = sets


class Learner(Generic[Layer]):
    """Weights, sparsity rule, optimizer, and what is remembered of the batches before.

    A step is `begin`, `encode`, a gradient from elsewhere, `squared_norm`, and `finish`. A GPU is not waited for: what
    a step finds wrong, the next one says, or `check()`.

    Args:
        features: the weights, which are changed: those of a share of d_sae features.
        activation: the rule that is trained.
        unit: keep decoder rows at unit norm.
        lr, betas, optimizer, max_grad_norm, auxk_alpha, auxk_k, dead_feature_window, recipe, share: as for `TrainStep`.
    """

    def __init__(
        self,
        features: Layer,
        activation: Activation,
        recipe: Recipe,
        d_sae: int,
        *,
        lr: float,
        betas: tuple[float, float],
        optimizer: str,
        unit: bool,
        max_grad_norm: float | None,
        auxk_alpha: float | None,
        auxk_k: int,
        dead_feature_window: int,
        share: Share = WHOLE,
    ) -> None:
        self.features = features
        self.d_sae = d_sae
        self.share = share
        self.activation = activation
        self.recipe = recipe
        self.rule = rule_for(activation, recipe, features, d_sae, share)
        own = self.rule.weights
        self.optimizer = OPTIMIZERS[optimizer](features, lr, betas, decoder_norm=unit, more=own, share=share)
        self.max_grad_norm = max_grad_norm
        self.objective = Objective(self.rule, auxk_alpha, auxk_k)
        self.n_steps = 0
        self.stats: StepStats | None = None
        self.screen: Screen | None = None
        self._firing = Firing(features.d_sae, dead_feature_window, features.device)
        self._variance = RunningVariance.of_nothing(features.d_out, features.device)
        # Of the step before there is the loss plus the squared norm of the gradient, the number of features dead after
        # it (here, and in all), and the variance before it.
        self._late = features.W_enc.is_cuda
        self._last = Readback()
        self._variance_before = self._variance

    @property
    def trained(self) -> Layer:
        """The weights, which later steps go on changing, with the rule for inference as it is now; of a share of the
        features, their rows. To read the running threshold of BatchTopK is to wait for a GPU."""
        if self.share.whole and not isinstance(self.activation, JumpReLU):  # whose theta the features hold
            self.features.activation = self.rule.activation()
        return self.features

    @property
    def lr(self) -> float:
        return self.optimizer.lr

    @lr.setter
    def lr(self, value: float) -> None:
        self.optimizer.lr = value

    @property
    def n_tokens(self) -> int:
        """Tokens trained on."""
        return self._variance.n

    @property
    def auxk_alpha(self) -> float:
        return self.objective.auxk_alpha

    @property
    def auxk_k(self) -> int:
        return self.objective.auxk_k

    @property
    def dead_feature_window(self) -> int:
        return self._firing.window

    @property
    def tokens_since_fired(self) -> Tensor:
        """Int64[Tensor, "F"]"""
        return self._firing.tokens_since

    @property
    def late(self) -> bool:
        """Whether a step's failure is said by the next one."""
        return self._late

    def begin(self, x: Tensor, y: Tensor) -> RunningVariance:
        """The variance of targets with y Float[Tensor, 'n d_out'] too; the first batch also sets the biases."""
        if self.n_tokens == 0:
            self._start_at_mean(x, y)
        return self._variance.after(y)

    def encode(self, x: Tensor) -> Batch:
        """The entries of x Float[Tensor, 'n d_in']."""
        W_enc = self.features.W_enc
        if x.is_cpu and x.dtype == torch.float32 and multiplies_bf16():
            if self.screen is None:
                self.screen = Screen(W_enc)
            elif not self.screen.follows(W_enc):
                self.screen.refresh(W_enc)
        return self.share.encoded(lambda rows: self.rule.encode(self.features, rows, self.n_steps, self.screen), x)

    def dead(self) -> Dead:
        """The features that were dead after the step before."""
        last = self._last.get() if self._late else None
        ids = self._firing.dead(None if last is None else int(last[1]))
        count = last[2] if last is not None else self.share.sum(ids.new_tensor(len(ids)))
        return Dead(ids, int(count), self.d_sae)

    def squared_norm(self, gradient: Gradient) -> Tensor:
        """Of the gradient, or a bound of it, which says all there is to know where nothing is to be clipped and nothing
        overflows: Float64[Tensor, ""]."""
        limit = math.inf if self.max_grad_norm is None else max(0.0, self.max_grad_norm - 1e-6)
        # Adam squares gradients in the precision of the weights: what overflows there would stay in its moments.
        return self.optimizer.squared_norm(gradient, min(limit**2, torch.finfo(self.features.dtype).max))

    def finish(
        self, batches: Sequence[Batch], found: Found, square: Tensor, health: Tensor, variance: RunningVariance
    ) -> None:
        """Move the weights, and remember the batch.

        Args:
            batches: the entries of all parts of it.
            found: what the loss said of them.
            square: of `squared_norm`.
            health: Float[Tensor, ""]; one that is not finite moves nothing.
            variance: of `begin`.
        """
        clip = torch.ones_like(square)
        if self.max_grad_norm is not None:
            clip = (self.max_grad_norm / (square.sqrt() + 1e-6)).clamp(max=1.0)
        self.optimizer.step(found.gradient, torch.where(health.isfinite(), clip, torch.nan), self.screen)
        self._variance_before, self._variance = self._variance, variance
        for batch in batches:
            self.rule.after(batch, health, self.features)
        self._firing.count(found.n, found.values, found.features)
        if self._late:
            n_dead = self._firing.n_dead()
            self._last.put(health, n_dead, self.share.sum(n_dead))
        self.stats = found.stats
        self.n_steps += 1

    def check(self) -> None:
        """Raise what the last step found too late to raise itself, waiting for it to end.

        Raises:
            TrainingDiverged: on a GPU, its loss or gradient was not finite.
        """
        if self.failed():
            self.take_back()
            where = f"at step {self.n_steps} of training"
            raise self.diverged(
                f"the loss or its gradient is not finite {where}; look for NaN or lower lr (now {self.lr:.2g})"
            )

    def failed(self) -> bool:
        """Whether the last step on a GPU went wrong, waiting for it to end."""
        last = self._last.get()
        return last is not None and not math.isfinite(last[0])

    def take_back(self) -> None:
        """After a step that failed: the weights never moved; the bookkeeping goes back to before that step, so that
        training may go on."""
        self._last, self._variance = Readback(), self._variance_before
        self.n_steps -= 1
        self.optimizer.n_steps -= 1

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs of this layer, nested; the tensors are the live ones. Raises what `check`
        raises."""
        self.check()
        return step_state(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` to the bit. Raises ValueError where it belongs to other sizes."""
        load_step_state(self, state)

    def blame(self, loss: Tensor, x: Tensor, y: Tensor) -> TrainingDiverged:
        """What to raise for a loss that is not finite, or whose gradient is not."""
        where = f"at step {self.n_steps} of training"
        bad = {name: int((~rows.isfinite()).any(1).sum()) for name, rows in (("inputs", x), ("targets", y))}
        if any(bad.values()):
            found = " and ".join(f"{count} of {len(x)} {name}" for name, count in bad.items() if count)
            return self.diverged(
                f"{found} {where} are NaN or infinite; look for the prompt that makes the model overflow"
            )
        return self.diverged(
            f"loss {float(loss):.3g} or its gradient is not finite {where}; lower lr (now {self.lr:.2g})"
        )

    def diverged(self, message: str) -> TrainingDiverged:
        return TrainingDiverged(f"{message}. The weights are those of the step before.", transcoder=self.trained)

    def _start_at_mean(self, x: Tensor, y: Tensor) -> None:
        own, recipe = self.features, self.recipe
        middle = center(y, recipe.b_dec_init_method)
        if not bool(y.isfinite().all() and x.isfinite().all()):
            raise self.blame(middle.sum(), x, y)
        own.b_dec.copy_(middle)
        own.b_enc.copy_(-own.W_enc @ center(x, recipe.b_dec_init_method))
        if isinstance(self.activation, ReLU | JumpReLU) and self.d_sae > 2 * recipe.initial_l0:
            theta = torch.zeros_like(own.b_enc) if own.theta is None else own.theta
            own.b_enc.copy_(rare_bias(x, own.W_enc, theta, recipe.initial_l0 / self.d_sae))
