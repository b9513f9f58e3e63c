"""One whole optimisation step of one transcoder on given activations.

    encode (exact top-k) -> residual -> sparse gradient -> its norm, if it may need clipping -> Adam

No dense gradient and no autograd graph exist: beside the weights and Adam's two moments there is only what the batch
needs (see `ops.gradient`).

The loss is the fraction of variance unexplained,

    FVU = sum_n ||y_n - yhat_n||^2 / (N V),        V = E ||y - E y||^2 over all tokens seen so far,

which makes one learning rate serve layers of any scale. The running V, rather than that of the batch, keeps small
batches from shaking the loss. Features that have not fired for `dead_feature_window` tokens get the auxiliary loss of
Gao et al. (arXiv 2406.04093): the best `auxk_k` of them reconstruct what the living ones left over, with gradients to
their encoder rows as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pullback.ops import on_huge_pages, topk_encode
from pullback.ops.screen import Screen, multiplies_bf16
from pullback.training.config import require_topk
from pullback.training.loss import Reconstruction, auxk_reconstruction, sparse_gradient
from pullback.training.optimizer import OPTIMIZERS, Gradient
from pullback.training.running import Firing, Readback, RunningVariance
from pullback.training.state import load_step_state, step_state
from pullback.transcoders import Activation, ModelReading, TopK, Transcoder

if TYPE_CHECKING:
    from pullback.transcoders import TranscoderSet


class TrainingDiverged(FloatingPointError):
    """A loss or gradient was NaN or infinite. The update was not applied: the weights are those of the step before.

    Attributes:
        transcoder: the last good weights, where a single `TrainStep` raised.
        sets: the last good weights of all layers, where `train` raised.
    """

    def __init__(self, message: str, transcoder: Transcoder | None = None, sets: TranscoderSet | None = None) -> None:
        super().__init__(message)
        self.transcoder = transcoder
        self.sets = sets


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


class TrainStep:
    """`loss = step(x, y)` improves `step.transcoder` by one step of Adam.

    Encoder rows start at random unit vectors and, where input and output have the same width, decoder rows at a tenth
    of them, else at zero. The first batch sets `b_dec` to the mean of its targets and `b_enc` so that its mean input
    has pre-activation zero: an offset shared by all inputs would otherwise decide which features win.

    Args:
        d_in, d_out, d_sae: widths of input, output and dictionary.
        k: active features a token.
        activation: None for TopK(k); a TopK overrides k.
        lr: learning rate; assign `step.lr` to follow a schedule.
        device, dtype: of the weights; float32 on the CPU by default. float64 is the other choice.
        betas: Adam's decays.
        max_grad_norm: gradients are scaled down to this norm; None never.
        auxk_alpha, auxk_k, dead_feature_window: the auxiliary loss, see TrainConfig.
        skip_connection: learn W_skip too, from zero.
        optimizer: "adam", or "lazy_adam", which moves only the features that fired (see LazyAdam for how it differs).
        decoder_norm: keep decoder rows at unit norm; they then start there too. The gradient's component along a row is
            removed.
        hook_in, hook_out, reading: passed on to the transcoder.
        seed: of the initial weights.

    Raises:
        ValueError: an activation other than TopK, k beyond d_sae, an unknown optimizer, or batches of another shape.
        TrainingDiverged: a loss or gradient is not finite; the weights stay those of the step before. On a GPU the next
            step says so, or `check()`: not to wait for the device.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        d_sae: int,
        k: int = 32,
        activation: Activation | None = None,
        lr: float = 2e-4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        max_grad_norm: float | None = 1.0,
        auxk_alpha: float = 1 / 32,
        auxk_k: int = 32,
        dead_feature_window: int = 100_000,
        skip_connection: bool = False,
        optimizer: str = "adam",
        decoder_norm: bool = False,
        hook_in: str = "mlp.hook_in",
        hook_out: str = "hook_mlp_out",
        reading: ModelReading | None = None,
        seed: int = 0,
    ) -> None:
        require_topk(activation)
        dtype = dtype or torch.float32
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(
                "TrainStep: dtype must be torch.float32 or torch.float64 (16-bit weights do not train "
                f"well), got {dtype}"
            )
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"TrainStep: optimizer must be one of {', '.join(OPTIMIZERS)}, got {optimizer!r}")
        self.activation = activation if isinstance(activation, TopK) else TopK(k)
        W_enc, W_dec = _initial_weights(d_in, d_out, d_sae, decoder_norm, seed, dtype)
        self.transcoder = Transcoder(
            W_enc,
            torch.zeros(d_sae, dtype=dtype),
            W_dec,
            torch.zeros(d_out, dtype=dtype),
            torch.zeros(d_out, d_in, dtype=dtype) if skip_connection else None,
            activation=self.activation,
            hook_in=hook_in,
            hook_out=hook_out,
            reading=reading,
        ).to(device=device)
        self.optimizer = OPTIMIZERS[optimizer](self.transcoder, lr, betas, decoder_norm=decoder_norm)
        self.max_grad_norm = max_grad_norm
        self.auxk_alpha = auxk_alpha
        self.auxk_k = auxk_k
        self.n_steps = 0
        self.stats: StepStats | None = None
        self.screen: Screen | None = None
        self._firing = Firing(d_sae, dead_feature_window, self.transcoder.device)
        self._variance = RunningVariance.of_nothing(d_out, self.transcoder.device)
        # A GPU is not waited for: what a step finds wrong, the next one says. Of the step before there is the loss plus
        # the squared norm of the gradient, the number of features dead after it, and the variance before it.
        self._late = self.transcoder.W_enc.is_cuda
        self._last = Readback()
        self._variance_before = self._variance

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
    def dead_feature_window(self) -> int:
        return self._firing.window

    @property
    def tokens_since_fired(self) -> Tensor:
        """Int64[Tensor, "F"]"""
        return self._firing.tokens_since

    @torch.no_grad()
    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """One step on inputs x Float[Tensor, 'n d_in'] and targets y Float[Tensor, 'n d_out']; returns the loss."""
        x, y = self._checked(x, y)
        if self.n_tokens == 0:
            self._start_at_mean(x, y)
        variance = self._variance.after(y)
        values, indices = self._encode(x)
        if self._late:
            self.check()
        loss, gradient, stats = self._loss(x, y, values, indices, variance.variance)
        health = self._descend(gradient, loss, x, y)
        self._variance_before, self._variance = self._variance, variance
        self._firing.count(values, indices)
        if self._late:
            self._last.put(health, self._firing.n_dead())
        self.stats = stats
        self.n_steps += 1
        return loss

    def check(self) -> None:
        """Raise what the last step found too late to raise itself, waiting for it to end.

        Raises:
            TrainingDiverged: on a GPU, its loss or gradient was not finite.
        """
        last = self._last.get()
        if last is None or math.isfinite(last[0]):
            return
        # The weights never moved; the bookkeeping goes back to before that step, so that training may go on.
        self._last, self._variance = Readback(), self._variance_before
        self.n_steps -= 1
        self.optimizer.n_steps -= 1
        where = f"at step {self.n_steps} of training"
        raise self._diverged(
            f"the loss or its gradient is not finite {where}; look for NaN or lower lr (now {self.lr:.2g})"
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs of this step, nested; the tensors are the live ones. Raises what `check`
        raises."""
        self.check()
        return step_state(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` to the bit. Raises ValueError where it belongs to a step of other sizes."""
        load_step_state(self, state)

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tc, rule = self.transcoder, self.activation
        if x.is_cpu and x.dtype == torch.float32 and multiplies_bf16():
            if self.screen is None:
                self.screen = Screen(tc.W_enc)
            elif self.screen.is_stale(tc.W_enc):
                self.screen.refresh(tc.W_enc)
        return topk_encode(x, tc.W_enc, tc.b_enc, rule.k, relu=rule.relu, screen=self.screen)

    def _checked(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        tc = self.transcoder
        if (
            x.ndim != 2
            or y.ndim != 2
            or x.shape[1] != tc.d_in
            or y.shape[1] != tc.d_out
            or len(x) != len(y)
            or len(x) == 0
        ):
            raise ValueError(
                f"TrainStep: x must be [n, d_in]=[n, {tc.d_in}] and y [n, d_out]=[n, {tc.d_out}] with n >= "
                "1 rows each, "
                f"got {list(x.shape)} and {list(y.shape)}"
            )
        return x.detach().to(tc.W_enc).contiguous(), y.detach().to(tc.W_enc).contiguous()

    def _loss(
        self, x: Tensor, y: Tensor, values: Tensor, indices: Tensor, variance: Tensor
    ) -> tuple[Tensor, Gradient, StepStats]:
        tc, n = self.transcoder, len(x)
        target = y if tc.W_skip is None else torch.addmm(y, x, tc.W_skip.T, alpha=-1)
        main = Reconstruction.of(values, indices, tc.W_dec, tc.b_dec, target, self.activation.relu)
        scale = n * variance
        fvu, weight = main.square / scale, 2 / scale
        parts = [(main, weight)]
        dead = self._dead()
        auxk = torch.zeros_like(fvu)
        if len(dead) > 0 and self.auxk_alpha > 0:
            # Weighted down while fewer than auxk_k features are dead.
            k = min(self.auxk_k, len(dead))
            aux = auxk_reconstruction(tc, x, main.residual, dead, k)
            auxk = aux.square / scale * (k / self.auxk_k)
            parts.append((aux, weight * self.auxk_alpha * (k / self.auxk_k)))
        factor = weight.to(x.dtype)
        gradient = Gradient(
            sparse_gradient(x, parts, tc.d_sae),
            b_dec=main.residual.sum(0) * factor,
            W_skip=None if tc.W_skip is None else main.residual.T @ x * factor,
        )
        stats = StepStats(
            fvu=fvu.to(x.dtype),
            l0=values.count_nonzero().to(x.dtype) / n,
            dead=torch.full_like(fvu, len(dead) / tc.d_sae, dtype=x.dtype),
            auxk=auxk.to(x.dtype),
        )
        return (fvu + self.auxk_alpha * auxk).to(x.dtype), gradient, stats

    def _dead(self) -> Tensor:
        """The features that were dead after the step before: Int64[Tensor, "n_dead"]."""
        last = self._last.get() if self._late else None
        return self._firing.dead(None if last is None else int(last[1]))

    def _descend(self, gradient: Gradient, loss: Tensor, x: Tensor, y: Tensor) -> Tensor:
        square = self._squared_norm(gradient)
        # Adam squares gradients in the precision of the weights: what overflows there would stay in its moments.
        health = loss + square.to(loss.dtype)
        if not self._late and not bool(health.isfinite()):
            raise self._blame(loss, x, y)
        clip = torch.ones_like(square)
        if self.max_grad_norm is not None:
            clip = (self.max_grad_norm / (square.sqrt() + 1e-6)).clamp(max=1.0)
        self.optimizer.step(gradient, torch.where(health.isfinite(), clip, torch.nan), self.screen)
        return health

    def _squared_norm(self, gradient: Gradient) -> Tensor:
        """Of the gradient, or a bound of it that already says that nothing is to be clipped and nothing overflows."""
        if not self._late:
            bound = self.optimizer.squared_norm_bound(gradient)
            limit = math.inf if self.max_grad_norm is None else self.max_grad_norm
            if float(bound.sqrt()) + 1e-6 <= limit and bool(bound.to(self.transcoder.dtype).isfinite()):
                return bound
        return self.optimizer.squared_norm(gradient)

    def _blame(self, loss: Tensor, x: Tensor, y: Tensor) -> TrainingDiverged:
        where = f"at step {self.n_steps} of training"
        bad = {name: int((~rows.isfinite()).any(1).sum()) for name, rows in (("inputs", x), ("targets", y))}
        if any(bad.values()):
            found = " and ".join(f"{count} of {len(x)} {name}" for name, count in bad.items() if count)
            return self._diverged(
                f"{found} {where} are NaN or infinite; look for the prompt that makes the model overflow"
            )
        return self._diverged(
            f"loss {float(loss):.3g} or its gradient is not finite {where}; lower lr (now {self.lr:.2g})"
        )

    def _diverged(self, message: str) -> TrainingDiverged:
        return TrainingDiverged(f"{message}. The weights are those of the step before.", transcoder=self.transcoder)

    def _start_at_mean(self, x: Tensor, y: Tensor) -> None:
        mean = y.mean(0)
        if not bool(mean.isfinite().all() and x.isfinite().all()):
            raise self._blame(mean.sum(), x, y)
        self.transcoder.b_dec.copy_(mean)
        self.transcoder.b_enc.copy_(-self.transcoder.W_enc @ x.mean(0))


def _initial_weights(
    d_in: int, d_out: int, d_sae: int, decoder_norm: bool, seed: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    # On the CPU whatever the device, so that one seed gives one set of weights everywhere.
    random = torch.Generator().manual_seed(seed)

    def fresh(d: int) -> Tensor:
        return on_huge_pages(torch.empty(d_sae, d, dtype=dtype))

    def unit_rows(d: int) -> Tensor:
        rows = fresh(d).normal_(generator=random)
        return rows.div_(rows.norm(dim=1, keepdim=True))

    W_enc = unit_rows(d_in)
    if decoder_norm:
        return W_enc, fresh(d_out).copy_(W_enc) if d_in == d_out else unit_rows(d_out)
    return W_enc, torch.mul(W_enc, 0.1, out=fresh(d_out)) if d_in == d_out else fresh(d_out).zero_()
