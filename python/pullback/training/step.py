"""One whole optimisation step of one transcoder on given activations.

    encode (exact top-k) -> sparse decode -> loss -> backward over active features only -> clip -> Adam

The loss is the fraction of variance unexplained,

    FVU = sum_n ||y_n - yhat_n||^2 / (N V),        V = E ||y - E y||^2 over all tokens seen so far,

which makes one learning rate serve layers of any scale. The running V, rather than that of the batch, keeps small
batches from shaking the loss. Features that have not fired for `dead_feature_window` tokens get the auxiliary loss of
Gao et al. (arXiv 2406.04093): the best `auxk_k` of them reconstruct what the living ones left over, with gradients to
their encoder rows as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pullback.ops import decode_topk, topk_encode
from pullback.training.config import require_topk
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
        hook_in, hook_out, reading: passed on to the transcoder.
        seed: of the initial weights.

    Raises:
        ValueError: an activation other than TopK, k beyond d_sae, or batches of another shape.
        TrainingDiverged: a loss or gradient is not finite; the weights stay those of the step before.
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
        self.activation = activation if isinstance(activation, TopK) else TopK(k)
        # On the CPU whatever the device, so that one seed gives one set of weights everywhere.
        W_enc = torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(seed), dtype=dtype)
        W_enc = W_enc / W_enc.norm(dim=1, keepdim=True)
        self.transcoder = Transcoder(
            W_enc,
            torch.zeros(d_sae, dtype=dtype),
            0.1 * W_enc if d_in == d_out else torch.zeros(d_sae, d_out, dtype=dtype),
            torch.zeros(d_out, dtype=dtype),
            torch.zeros(d_out, d_in, dtype=dtype) if skip_connection else None,
            activation=self.activation,
            hook_in=hook_in,
            hook_out=hook_out,
            reading=reading,
        ).to(device=device)
        self.optimizer = torch.optim.Adam(self.transcoder.parameters(), lr=lr, betas=betas, fused=True)
        self.max_grad_norm = max_grad_norm
        self.auxk_alpha = auxk_alpha
        self.auxk_k = auxk_k
        self.dead_feature_window = dead_feature_window
        self.n_tokens = 0
        self.n_steps = 0
        self.tokens_since_fired = torch.zeros(d_sae, dtype=torch.long, device=self.transcoder.device)
        self.stats: StepStats | None = None
        self._mean = torch.zeros(d_out, dtype=torch.float64, device=self.transcoder.device)
        self._scatter = torch.zeros((), dtype=torch.float64, device=self.transcoder.device)

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    @lr.setter
    def lr(self, value: float) -> None:
        self.optimizer.param_groups[0]["lr"] = value

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """One step on inputs x Float[Tensor, 'n d_in'] and targets y Float[Tensor, 'n d_out']; returns the loss,
        detached."""
        x, y = self._checked(x, y)
        if self.n_tokens == 0:
            self._start_at_mean(x, y)
        self._update_variance(y)
        self.transcoder.requires_grad_(True)
        try:
            loss, stats, indices, values = self._loss(x, y)
            loss.backward()
            self._descend(loss, x, y)
        finally:
            self.optimizer.zero_grad(set_to_none=True)
            # Outside of a step the weights track nothing, so that the transcoder can be used as it stands.
            self.transcoder.requires_grad_(False)
        self._count_firing(indices, values, len(x))
        self.stats = stats
        self.n_steps += 1
        return loss.detach()

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
        return x.detach().to(tc.W_enc), y.detach().to(tc.W_enc)

    def _loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, StepStats, Tensor, Tensor]:
        tc, rule = self.transcoder, self.activation
        values, indices = topk_encode(x, tc.W_enc, tc.b_enc, rule.k, relu=rule.relu)
        y_hat = decode_topk(values, indices, tc.W_dec, tc.b_dec)
        if tc.W_skip is not None:
            y_hat = y_hat + x @ tc.W_skip.T
        residual = y - y_hat
        scale = self._scale(len(x))
        fvu = residual.square().sum() / scale
        dead = (self.tokens_since_fired >= self.dead_feature_window).nonzero().flatten()
        auxk = self._auxk(x, residual.detach(), dead) / scale
        loss = fvu + self.auxk_alpha * auxk
        stats = StepStats(
            fvu=fvu.detach(),
            l0=(values.detach() != 0).sum(1).to(x.dtype).mean(),
            dead=x.new_tensor(len(dead) / tc.d_sae),
            auxk=auxk.detach(),
        )
        return loss, stats, indices, values.detach()

    def _auxk(self, x: Tensor, residual: Tensor, dead: Tensor) -> Tensor:
        """sum_n ||residual - decode(top dead features)||^2, without b_dec, weighted down while fewer than auxk_k
        features are dead"""
        if len(dead) == 0 or self.auxk_alpha == 0:
            return residual.new_zeros(())
        tc, k = self.transcoder, min(self.auxk_k, len(dead))
        values, indices = topk_encode(x, tc.W_enc[dead], tc.b_enc[dead], k, relu=True)
        explained = decode_topk(values, indices, tc.W_dec[dead])
        return (residual - explained).square().sum() * (k / self.auxk_k)

    def _descend(self, loss: Tensor, x: Tensor, y: Tensor) -> None:
        weights = list(self.transcoder.parameters())
        norm = torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        if not bool(torch.isfinite(loss.detach() + norm)):
            self._diverged(loss.detach(), x, y)
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(weights, self.max_grad_norm, norm)
        self.optimizer.step()

    def _diverged(self, loss: Tensor, x: Tensor, y: Tensor) -> None:
        where = f"at step {self.n_steps} of training"
        bad = {name: int((~rows.isfinite()).any(1).sum()) for name, rows in (("inputs", x), ("targets", y))}
        if any(bad.values()):
            found = " and ".join(f"{count} of {len(x)} {name}" for name, count in bad.items() if count)
            message = f"{found} {where} are NaN or infinite; look for the prompt that makes the model overflow"
        else:
            message = f"loss {float(loss):.3g} or its gradient is not finite {where}; lower lr (now {self.lr:.2g})"
        raise TrainingDiverged(message + ". The weights are those of the step before.", transcoder=self.transcoder)

    @torch.no_grad()
    def _start_at_mean(self, x: Tensor, y: Tensor) -> None:
        mean = y.mean(0)
        if not bool(mean.isfinite().all() and x.isfinite().all()):
            self._diverged(mean.sum(), x, y)
        self.transcoder.b_dec.copy_(mean)
        self.transcoder.b_enc.copy_(-self.transcoder.W_enc @ x.mean(0))

    def _update_variance(self, y: Tensor) -> None:
        """Mean and sum of squared deviations over all tokens so far, by the pairwise update of Chan, Golub and
        LeVeque."""
        rows = y.double()
        mean, n = rows.mean(0), len(rows)
        total = self.n_tokens + n
        shift = mean - self._mean
        self._scatter += (rows - mean).square().sum() + shift.square().sum() * (self.n_tokens * n / total)
        self._mean += shift * (n / total)
        self.n_tokens = total

    def _scale(self, n: int) -> Tensor:
        """N V, the squared deviation expected of n tokens; kept off zero for targets that do not vary."""
        variance = self._scatter / self.n_tokens
        return n * torch.maximum(variance, 1e-12 * self._mean.square().sum() + 1e-30).to(self.transcoder.dtype)

    def _count_firing(self, indices: Tensor, values: Tensor, n: int) -> None:
        fired = indices[values != 0].long()
        self.tokens_since_fired += n
        self.tokens_since_fired[fired] = 0
