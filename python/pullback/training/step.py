"""One whole optimisation step of one transcoder on given activations.

    encode -> residual -> sparse gradient -> its norm, if it may need clipping -> Adam

No dense gradient and no autograd graph exist: beside the weights and Adam's two moments there is only what the batch
needs (see `ops.gradient`). What is encoded, and which penalty it carries, is the sparsity rule's business (see
`training.rules`).

The loss is, unless the recipe says otherwise, the fraction of variance unexplained,

    FVU = sum_n ||y_n - yhat_n||^2 / (N V),        V = E ||y - E y||^2 over all tokens seen so far,

which makes one learning rate serve layers of any scale. The running V, rather than that of the batch, keeps small
batches from shaking the loss. Features that have not fired for `dead_feature_window` tokens get the auxiliary loss of
Gao et al. (arXiv 2406.04093): the best `auxk_k` of them reconstruct what the living ones left over, with gradients to
their encoder rows as well.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pullback._util.memory import out_of_memory
from pullback.ops.screen import Screen, multiplies_bf16
from pullback.training.accumulate import Found, together
from pullback.training.initial import center, initial_weights, rare_bias
from pullback.training.objective import Dead, Objective, StepStats
from pullback.training.optimizer import OPTIMIZERS, Gradient
from pullback.training.recipe import Recipe
from pullback.training.rules import Batch, check_recipe, rule_for
from pullback.training.running import Firing, Readback, RunningVariance
from pullback.training.share import WHOLE, Share
from pullback.training.state import load_step_state, step_state
from pullback.transcoders import Activation, BatchTopK, JumpReLU, ModelReading, ReLU, TopK, Transcoder

if TYPE_CHECKING:
    from pullback.transcoders import LayeredDictionary


class TrainingDiverged(FloatingPointError):
    """A loss or gradient was NaN or infinite. The update was not applied: the weights are those of the step before.

    Attributes:
        transcoder: the last good weights, where a single `TrainStep` raised.
        sets: the last good weights of all layers, where `train` raised.
    """

    def __init__(
        self, message: str, transcoder: Transcoder | None = None, sets: LayeredDictionary | None = None
    ) -> None:
        super().__init__(message)
        self.transcoder = transcoder
        self.sets = sets


class TrainStep:
    """`loss = step(x, y)` improves `step.transcoder` by one step of Adam.

    Encoder rows start at random unit vectors and, where input and output have the same width, decoder rows at a tenth
    of them, else at zero. The first batch sets `b_dec` to the mean of its targets and `b_enc` so that its mean input
    has pre-activation zero: an offset shared by all inputs would otherwise decide which features win. The recipe knows
    other ways to start.

    Args:
        d_in, d_out, d_sae: widths of input, output and dictionary.
        k: active features a token.
        activation: the sparsity rule: None for TopK(k); TopK or BatchTopK, which override k; ReLU, with an L1 penalty;
            or JumpReLU, whose thetas are where the learned ones start.
        lr: learning rate; assign `step.lr` to follow a schedule.
        device, dtype: of the weights; float32 on the CPU by default. float64 is the other choice.
        betas: Adam's decays.
        max_grad_norm: gradients are scaled down to this norm; None never.
        auxk_alpha, auxk_k, dead_feature_window: the auxiliary loss of TopK and BatchTopK, see TrainConfig.
        skip_connection: learn W_skip too, from zero.
        optimizer: "adam", or "lazy_adam", which moves only the features that fired (see LazyAdam for how it differs).
        decoder_norm: keep decoder rows at unit norm; they then start there too. The gradient's component along a row is
            removed. ReLU does so in any case, unless its penalty is weighted by the norms, and so does the reference
            loss.
        hook_in, hook_out, reading: passed on to the transcoder.
        seed: of the initial weights.
        micro_batch_size: rows worked through at a time; None for all of a batch, until that does not fit into memory.
            The update is that of the whole batch, to rounding; BatchTopK chooses in each part.
        recipe: losses, penalties, schedules and initial values; None for the defaults of `Recipe`.
        share: which of the features are held here, of `training.distributed`.

    Raises:
        ValueError: k beyond d_sae, an unknown optimizer, a recipe that does not fit, or batches of another shape.
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
        micro_batch_size: int | None = None,
        recipe: Recipe | None = None,
        share: Share = WHOLE,
    ) -> None:
        dtype = dtype or torch.float32
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(
                "TrainStep: dtype must be torch.float32 or torch.float64 (16-bit weights do not train "
                f"well), got {dtype}"
            )
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"TrainStep: optimizer must be one of {', '.join(OPTIMIZERS)}, got {optimizer!r}")
        self.recipe = recipe or Recipe()
        self.activation = TopK(k) if activation is None else activation
        unit = decoder_norm or self.recipe.loss == "reference"
        unit |= isinstance(activation, ReLU) and not self.recipe.weight_by_decoder_norm
        check_recipe(self.activation, self.recipe, d_in, d_out, d_sae, unit)
        if not share.whole and isinstance(activation, ReLU) and self.recipe.loss == "reference":
            raise ValueError(
                'training: loss="reference" gives dead ReLU features ghost gradients, which need all features in one '
                'process; choose parallel="layers", or another loss'
            )
        self.share = share
        self.d_sae = d_sae
        held = share.features(d_sae)
        W_enc, W_dec = initial_weights(d_in, d_out, d_sae, unit, self.recipe.decoder_init, seed, dtype, held)
        start = self.activation
        if isinstance(start, JumpReLU):  # one theta a feature
            theta = torch.as_tensor(start.theta, dtype=dtype, device="cpu")
            start = JumpReLU((theta.expand(d_sae) if theta.ndim == 0 else theta)[held].clone())
        elif isinstance(start, TopK | BatchTopK) and not share.whole:  # k may exceed what is held here
            start = dataclasses.replace(start, k=min(start.k, len(W_enc)))
        self._transcoder = Transcoder(
            W_enc,
            W_enc.new_zeros(len(W_enc)),
            W_dec,
            W_enc.new_zeros(d_out),
            W_enc.new_zeros(d_out, d_in) if skip_connection else None,
            activation=start,
            hook_in=hook_in,
            hook_out=hook_out,
            reading=reading,
        ).to(device=device)
        self.rule = rule_for(self.activation, self.recipe, self._transcoder, d_sae, share)
        own = self.rule.weights
        self.optimizer = OPTIMIZERS[optimizer](self._transcoder, lr, betas, decoder_norm=unit, more=own, share=share)
        self.max_grad_norm = max_grad_norm
        self.micro_batch_size = micro_batch_size
        self.objective = Objective(self.rule, auxk_alpha, auxk_k)
        self.n_steps = 0
        self.stats: StepStats | None = None
        self.screen: Screen | None = None
        self._firing = Firing(len(W_enc), dead_feature_window, self._transcoder.device)
        self._variance = RunningVariance.of_nothing(d_out, self._transcoder.device)
        # A GPU is not waited for: what a step finds wrong, the next one says. Of the step before there is the loss plus
        # the squared norm of the gradient, the number of features dead after it (here, and in all), and the variance
        # before it.
        self._late = self._transcoder.W_enc.is_cuda
        self._last = Readback()
        self._variance_before = self._variance

    @property
    def transcoder(self) -> Transcoder:
        """The weights, which later steps go on changing, with the rule for inference as it is now; of a share of the
        features, their rows. To read the running threshold of BatchTopK is to wait for a GPU."""
        if self.share.whole and not isinstance(self.activation, JumpReLU):  # whose theta the transcoder holds
            self._transcoder.activation = self.rule.activation()
        return self._transcoder

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

    @torch.no_grad()
    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """One step on inputs x Float[Tensor, 'n d_in'] and targets y Float[Tensor, 'n d_out']; returns the loss."""
        x, y = self._checked(x, y)
        with torch.autocast(x.device.type, enabled=False):  # the weights' precision is that of the step
            return self._step(x, y)

    def _step(self, x: Tensor, y: Tensor) -> Tensor:
        if self.n_tokens == 0:
            self._start_at_mean(x, y)
        variance = self._variance.after(y)
        found, batches = self._worked_through(x, y, variance.variance)
        health = self._descend(found.gradient, found.loss, x, y)
        self._variance_before, self._variance = self._variance, variance
        for batch in batches:
            self.rule.after(batch, health, self._transcoder)
        self._firing.count(len(x), found.values, found.features)
        if self._late:
            n_dead = self._firing.n_dead()
            self._last.put(health, n_dead, self.share.sum(n_dead))
        self.stats = found.stats
        self.n_steps += 1
        return found.loss

    def _worked_through(self, x: Tensor, y: Tensor, variance: Tensor) -> tuple[Found, list[Batch]]:
        """What the loss has to say of the batch, and the entries of its parts; in smaller parts from now on where these
        did not fit into memory."""
        while True:
            size = min(self.micro_batch_size or len(x), len(x))
            try:
                return self._in_parts(x, y, variance, size)
            except (RuntimeError, MemoryError) as error:
                # Others that share the features have not failed, and would wait for the parts that they know.
                if not out_of_memory(error) or size == 1 or self.share is not WHOLE:
                    raise
            # Out of the except block, so that what failed holds no memory any more.
            self.micro_batch_size = -(-size // 2)
            if x.is_cuda:
                torch.cuda.empty_cache()
            tqdm.write(
                f"{size} rows do not fit into memory in one training step: going on in parts of {self.micro_batch_size}"
            )

    def _in_parts(self, x: Tensor, y: Tensor, variance: Tensor, size: int) -> tuple[Found, list[Batch]]:
        batches = [self._encode(part) for part in x.split(size)]
        if self._late:
            self.check()
        dead = self._dead()
        parts = [
            Found.of(
                len(inputs), *self.objective(self._transcoder, inputs, targets, batch, variance, dead, self.n_steps)
            )
            for inputs, targets, batch in zip(x.split(size), y.split(size), batches, strict=True)
        ]
        return together(parts, self._transcoder.d_sae), batches

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

    def _encode(self, x: Tensor) -> Batch:
        tc = self._transcoder
        if x.is_cpu and x.dtype == torch.float32 and multiplies_bf16():
            if self.screen is None:
                self.screen = Screen(tc.W_enc)
            elif not self.screen.follows(tc.W_enc):
                self.screen.refresh(tc.W_enc)
        return self.share.encoded(lambda rows: self.rule.encode(tc, rows, self.n_steps, self.screen), x)

    def _checked(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        tc = self._transcoder
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

    def _dead(self) -> Dead:
        """The features that were dead after the step before."""
        last = self._last.get() if self._late else None
        ids = self._firing.dead(None if last is None else int(last[1]))
        count = last[2] if last is not None else self.share.sum(ids.new_tensor(len(ids)))
        return Dead(ids, int(count), self.d_sae)

    def _descend(self, gradient: Gradient, loss: Tensor, x: Tensor, y: Tensor) -> Tensor:
        # A bound says all there is to know where nothing is to be clipped and nothing overflows.
        limit = math.inf if self.max_grad_norm is None else max(0.0, self.max_grad_norm - 1e-6)
        square = self.optimizer.squared_norm(gradient, min(limit**2, torch.finfo(loss.dtype).max))
        # Adam squares gradients in the precision of the weights: what overflows there would stay in its moments.
        health = loss + square.to(loss.dtype)
        if not self._late and not bool(health.isfinite()):
            raise self._blame(loss, x, y)
        clip = torch.ones_like(square)
        if self.max_grad_norm is not None:
            clip = (self.max_grad_norm / (square.sqrt() + 1e-6)).clamp(max=1.0)
        self.optimizer.step(gradient, torch.where(health.isfinite(), clip, torch.nan), self.screen)
        return health

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
        tc, recipe = self._transcoder, self.recipe
        middle = center(y, recipe.b_dec_init_method)
        if not bool(y.isfinite().all() and x.isfinite().all()):
            raise self._blame(middle.sum(), x, y)
        tc.b_dec.copy_(middle)
        tc.b_enc.copy_(-tc.W_enc @ center(x, recipe.b_dec_init_method))
        if isinstance(self.activation, ReLU | JumpReLU) and self.d_sae > 2 * recipe.initial_l0:
            theta = torch.zeros_like(tc.b_enc) if tc.theta is None else tc.theta
            tc.b_enc.copy_(rare_bias(x, tc.W_enc, theta, recipe.initial_l0 / self.d_sae))
