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

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pullback._util.memory import out_of_memory
from pullback.training.accumulate import Found, together
from pullback.training.initial import initial_rule, initial_weights
from pullback.training.learner import Learner, TrainingDiverged
from pullback.training.optimizer import OPTIMIZERS
from pullback.training.recipe import Recipe
from pullback.training.rules import Batch, check_recipe, keeps_unit_norm
from pullback.training.share import WHOLE, Share
from pullback.transcoders import Activation, ModelReading, ReLU, TopK, Transcoder

__all__ = ["TrainStep", "TrainingDiverged"]


class TrainStep(Learner[Transcoder]):
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
        auxk_alpha, auxk_k, dead_feature_window: the auxiliary loss, see TrainConfig.
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
        auxk_alpha: float | None = None,
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
        recipe = recipe or Recipe()
        activation = TopK(k) if activation is None else activation
        unit = keeps_unit_norm(activation, recipe, decoder_norm)
        check_recipe(activation, recipe, d_in, d_out, d_sae, unit)
        if not share.whole and isinstance(activation, ReLU) and recipe.loss == "reference":
            raise ValueError(
                'training: loss="reference" gives dead ReLU features ghost gradients, which need all features in one '
                'process; choose parallel="layers", or another loss'
            )
        held = share.features(d_sae)
        W_enc, W_dec = initial_weights(d_in, d_out, d_sae, unit, recipe.decoder_init, seed, dtype, held)
        transcoder = Transcoder(
            W_enc,
            W_enc.new_zeros(len(W_enc)),
            W_dec,
            W_enc.new_zeros(d_out),
            W_enc.new_zeros(d_out, d_in) if skip_connection else None,
            activation=initial_rule(activation, d_sae, held, dtype),
            hook_in=hook_in,
            hook_out=hook_out,
            reading=reading,
        ).to(device=device)
        super().__init__(
            transcoder,
            activation,
            recipe,
            d_sae,
            lr=lr,
            betas=betas,
            optimizer=optimizer,
            unit=unit,
            max_grad_norm=max_grad_norm,
            auxk_alpha=auxk_alpha,
            auxk_k=auxk_k,
            dead_feature_window=dead_feature_window,
            share=share,
        )
        self.micro_batch_size = micro_batch_size

    @property
    def transcoder(self) -> Transcoder:
        """The weights, which later steps go on changing, with the rule for inference as it is now; of a share of the
        features, their rows. To read the running threshold of BatchTopK is to wait for a GPU."""
        return self.trained

    @torch.no_grad()
    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """One step on inputs x Float[Tensor, 'n d_in'] and targets y Float[Tensor, 'n d_out']; returns the loss."""
        x, y = self._checked(x, y)
        with torch.autocast(x.device.type, enabled=False):  # the weights' precision is that of the step
            return self._step(x, y)

    def _step(self, x: Tensor, y: Tensor) -> Tensor:
        variance = self.begin(x, y)
        found, batches = self._worked_through(x, y, variance.variance)
        square = self.squared_norm(found.gradient)
        health = found.loss + square.to(found.loss.dtype)
        if not self.late and not bool(health.isfinite()):
            raise self.blame(found.loss, x, y)
        self.finish(batches, found, square, health, variance)
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
                if not out_of_memory(error) or size == 1 or not self.share.whole:
                    raise
            # Out of the except block, so that what failed holds no memory any more.
            self.micro_batch_size = -(-size // 2)
            if x.is_cuda:
                torch.cuda.empty_cache()
            tqdm.write(
                f"{size} rows do not fit into memory in one training step: going on in parts of {self.micro_batch_size}"
            )

    def _in_parts(self, x: Tensor, y: Tensor, variance: Tensor, size: int) -> tuple[Found, list[Batch]]:
        batches = [self.encode(part) for part in x.split(size)]
        if self.late:
            self.check()
        dead = self.dead()
        parts = [
            Found.of(len(inputs), *self.objective(self.features, inputs, targets, batch, variance, dead, self.n_steps))
            for inputs, targets, batch in zip(x.split(size), y.split(size), batches, strict=True)
        ]
        return together(parts, self.features.d_sae), batches

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"micro_batch_size": self.micro_batch_size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.micro_batch_size = state.get("micro_batch_size", self.micro_batch_size)

    def _checked(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        tc = self.features
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
