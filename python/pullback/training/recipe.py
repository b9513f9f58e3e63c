"""How a sparsity rule is trained: the loss, its penalties, their schedules, and where the weights start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LOSSES = ("fvu", "paper", "reference")
SPARSITY_LOSS_MODES = ("step", "tanh")
DECODER_INITS = ("tenth", "tied", "zero")
B_DEC_INIT_METHODS = ("mean", "geometric_median", "zeros")
RESIDUALS = ("target", "reference")


@dataclass(kw_only=True)
class Recipe:
    """What a rule (TopK, BatchTopK, ReLU, JumpReLU) is trained with. Each reads what concerns it.

    Penalties are means over the tokens of a batch, in the unit of the loss. Schedules count steps from 0.

    Attributes:
        loss: of the reconstruction. "fvu": squared error over the variance of all targets so far, which no scale
            changes. "paper": the squared error itself (Dunefsky et al., arXiv 2406.11944, eq. 5). "reference": as their
            code has it, the mean over elements of the squared error over the norm of its target, with decoder rows of
            unit norm and, for ReLU, ghost gradients for dead features. None: "paper" for ReLU, "fvu" otherwise.
        residual: what ghost gradients explain: "target", what is left of the target; or "reference", the input less the
            reconstruction, as the authors' code had it, for parity.
        l1_coefficient: ReLU: weight of sum_i z_i. It has the scale of the activations, so sweep it.
        l1_warm_up_steps: steps over which it rises linearly from 0.
        l0_coefficient: JumpReLU: weight of the number of active features, or of its smooth stand-in. With loss "fvu" it
            is the share of variance that a feature has to explain where it is active.
        l0_warm_up_steps: steps over which it rises linearly from 0.
        jumprelu_sparsity_loss_mode: "step": the number of active features (Rajamanoharan et al., arXiv 2407.14435).
            "tanh": sum_i tanh(scale z_i), which has a gradient by z as well.
        jumprelu_tanh_scale: that scale.
        jumprelu_bandwidth: width of the window around theta in which pre-activations move it.
        pre_act_loss_coefficient: JumpReLU: weight of sum_i max(theta_i - h_i, 0) over dead features, which lifts them
            until they fire; 0 never.
        weight_by_decoder_norm: penalties see z_i ||W_dec[i]||, so that decoder rows may have any norm. Without it ReLU
            keeps them at unit norm: a penalty on z alone would make z small and W_dec large.
        matryoshka_widths: TopK, BatchTopK: the first m features reconstruct on their own, for each m of these; the
            losses are added up (Bussmann et al., arXiv 2503.17547). The last one is d_sae, and is added where missing.
        k_start: TopK, BatchTopK: k of the first step, from which it moves linearly to its value; None starts there.
        k_anneal_steps: steps that takes.
        topk_threshold_lr: BatchTopK: how fast the running threshold for inference follows the smallest value kept.
        initial_l0: ReLU, JumpReLU: at most so many features are active on a token at the start. Where half of all are
            not more than that, pre-activations start at mean zero.
        decoder_init: W_dec starts at a "tenth" of W_enc, "tied" to it, or "zero". Where input and output differ in
            width, "tenth" means zero.
        b_dec_init_method: b_dec starts at the "mean" or the "geometric_median" of the first batch of targets, or at
            "zeros"; b_enc makes the same of the inputs have pre-activation zero.

    Raises:
        ValueError: a setting is out of range; the sentence says which and why.
    """

    loss: str | None = None
    residual: str = "target"
    l1_coefficient: float = 1e-3
    l1_warm_up_steps: int = 0
    l0_coefficient: float = 1e-3
    l0_warm_up_steps: int = 0
    jumprelu_sparsity_loss_mode: str = "step"
    jumprelu_tanh_scale: float = 4.0
    jumprelu_bandwidth: float = 0.05
    pre_act_loss_coefficient: float = 0.0
    weight_by_decoder_norm: bool = False
    matryoshka_widths: Sequence[int] | None = None
    k_start: int | None = None
    k_anneal_steps: int = 0
    topk_threshold_lr: float = 0.01
    initial_l0: int = 1024
    decoder_init: str = "tenth"
    b_dec_init_method: str = "mean"

    def __post_init__(self) -> None:
        for name, known in (
            ("loss", (None, *LOSSES)),
            ("residual", RESIDUALS),
            ("jumprelu_sparsity_loss_mode", SPARSITY_LOSS_MODES),
            ("decoder_init", DECODER_INITS),
            ("b_dec_init_method", B_DEC_INIT_METHODS),
        ):
            if getattr(self, name) not in known:
                raise self._wrong(name, f"be one of {', '.join(map(str, known))}")
        for name in (
            "l1_coefficient", "l1_warm_up_steps", "l0_coefficient", "l0_warm_up_steps", "pre_act_loss_coefficient",
            "k_anneal_steps",
        ):  # fmt: skip
            if not getattr(self, name) >= 0:
                raise self._wrong(name, "not be negative")
        for name in ("jumprelu_bandwidth", "jumprelu_tanh_scale", "initial_l0"):
            if not getattr(self, name) > 0:
                raise self._wrong(name, "be positive")
        if not 0 < self.topk_threshold_lr <= 1:
            raise self._wrong("topk_threshold_lr", "lie in (0, 1]")
        if self.k_start is not None and self.k_start < 1:
            raise self._wrong("k_start", "be at least 1, or None")
        if (self.k_start is None) != (self.k_anneal_steps == 0):
            raise ValueError(
                f"{type(self).__name__}: k_start and k_anneal_steps go together: k moves from k_start over so many "
                f"steps; got {self.k_start} and {self.k_anneal_steps}"
            )
        widths = self.matryoshka_widths
        if widths is not None and (not widths or any(a >= b for a, b in zip((0, *widths), widths, strict=False))):
            raise self._wrong("matryoshka_widths", "be positive and ascend, like [64, 256, 1024]")

    def _wrong(self, name: str, wanted: str) -> ValueError:
        return ValueError(f"{type(self).__name__}: {name} must {wanted}, got {getattr(self, name)!r}")

    def k_at(self, step: int, k: int) -> int:
        """k of step 0, 1, ... on the way from `k_start` to k."""
        if self.k_start is None or step >= self.k_anneal_steps:
            return k
        return round(self.k_start + (k - self.k_start) * step / self.k_anneal_steps)

    def l1_at(self, step: int) -> float:
        """The L1 coefficient of step 0, 1, ..."""
        return self.l1_coefficient * _rise(step, self.l1_warm_up_steps)

    def l0_at(self, step: int) -> float:
        """The L0 coefficient of step 0, 1, ..."""
        return self.l0_coefficient * _rise(step, self.l0_warm_up_steps)


def _rise(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / steps) if steps else 1.0
