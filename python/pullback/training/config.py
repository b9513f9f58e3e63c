"""The settings of a training run. Names follow SAELens where they mean the same thing."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import torch

from pullback.training.normalize import NORMALIZATIONS
from pullback.training.optimizer import OPTIMIZERS
from pullback.training.recipe import Recipe
from pullback.training.schedule import SCHEDULERS, SYNONYMS, Schedule
from pullback.transcoders import Activation, BatchTopK, JumpReLU, ReLU, TopK
from pullback.transcoders.crosslayer import DECODER_TYINGS

ARCHITECTURES = ("topk", "batchtopk", "standard", "jumprelu", "matryoshka_batchtopk")
PARALLEL = ("none", "layers", "features", "data")
STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass
class TrainConfig(Recipe):
    """Settings of `train` and `train_on_activations`: these, and by keyword those of :class:`Recipe` (losses,
    penalties, schedules of both, Matryoshka widths, initial values).

    Attributes:
        d_sae: number of features F of every layer.
        expansion_factor: instead of `d_sae`, so many times the width of the inputs.
        k: features that may be active on one token; with BatchTopK, on average.
        activation: the sparsity rule, None for what `architecture` says.
        layers: layers to train, None for all of the model.
        hook_name: place inside `blocks.{l}.` where the input is read.
        hook_name_out: place inside `blocks.{l}.` whose value is the target. Where both are the same, autoencoders are
            trained: of "hook_mlp_out" or "hook_attn_out".
        skip_connection: also learn a linear path W_skip from input to output, starting at zero.
        training_tokens: tokens to train on, counted after masking. Given prompts are repeated, reshuffled, until it is
            reached.
        train_batch_size_tokens: tokens of a batch; of one optimisation step, unless `grad_acc_steps` says more.
        grad_acc_steps: batches whose gradients make one step.
        micro_acc_steps: parts in which a batch is worked through, which takes less memory and moves weights alike, to
            rounding. A batch that does not fit into memory is halved in any case. BatchTopK chooses in each part.
        context_size: prompts are cut to this many tokens; None keeps them whole.
        store_batch_size_prompts: prompts of one forward pass.
        n_batches_in_buffer: the buffer in which tokens of different prompts are mixed holds this many training batches.
        exclude_bos: leave out a beginning-of-sequence token at the first position. Its activations are outliers that no
            other token shares.
        bos_token_id: the token that counts as one; None asks the model's tokenizer (a model without tokenizer excludes
            nothing).
        lr: peak learning rate of Adam.
        lr_scheduler_name: how the rate falls: "linear", "cosine" (or "cosineannealing"), or "constant", not at all.
        lr_end: the rate at the end of the fall; None for 0, or for a tenth of `lr` with a cosine.
        lr_warm_up_steps: steps over which the rate rises linearly from 0.
        lr_decay_steps: last steps over which it falls; None for all after the warm-up.
        adam_beta1: decay of Adam's mean.
        adam_beta2: decay of Adam's second moment.
        optimizer: "adam", or "lazy_adam", which moves only the features that fired in the batch: cheaper for very wide
            dictionaries, and another method (see `LazyAdam`).
        decoder_norm: decoder rows have unit norm, and their gradient no component along them. With ReLU they do in any
            case, unless `weight_by_decoder_norm`; with the reference loss too.
        max_grad_norm: gradients of a layer are scaled down to this norm; None never.
        auxk_alpha: weight of the auxiliary loss that lets dead features explain the residual; None for 1/32 with TopK
            and BatchTopK, and 0, which is none, with ReLU and JumpReLU: there it takes pre-activations as they are,
            negative ones too, since those of a dead feature are below its threshold.
        auxk_k: dead features that may do so on one token.
        dead_feature_window: tokens without firing after which a feature counts as dead; None for a fiftieth of
            `training_tokens`.
        seed: of weights, shuffling and mixing. The global generators are never touched.
        device: where transcoders are trained; None for where the model is.
        dtype: "float32" or "float64".
        architecture: "topk", "batchtopk", "standard" (ReLU with an L1 penalty), "jumprelu" or "matryoshka_batchtopk".
            Any of the first two is Matryoshka where `matryoshka_widths` are given. None for that of `activation`.
        jumprelu_init_threshold: theta of every feature at the start, for architecture "jumprelu".
        exclude_padding: leave out the tokenizer's padding token where it fills a prompt up, on either side.
        exclude_special_tokens: leave out special tokens wherever they stand: True for all that the tokenizer names, or
            a list of ids.
        normalize_activations: "none"; or "expected_average_only_in": inputs and targets are multiplied by factors with
            which a row of d has norm sqrt(d) on average over the first step, so that one learning rate and one penalty
            serve activations of any size. The factors are in the weights of the set that is returned and saved.
        autocast_lm: run the model under autocast, whose products are in bfloat16: faster on most hardware, with
            activations of that precision.
        act_store_dtype: how rows wait in the mixing buffer: "bfloat16" halves its memory; None for `dtype`. The step
            computes in `dtype`.
        cross_layer: train one cross-layer transcoder instead: features of a layer write to it and to all layers above
            it that are trained.
        decoder_tying: of a cross-layer transcoder: "none", "per_source" (one decoder of a layer for all it writes to)
            or "per_target" (one decoder of a layer for all that write to it).
        prefetch: forward passes that a background thread runs ahead of training, which changes no number; None for 2
            where transcoders are trained on a GPU, and 0 on a CPU, where both would compete for the same cores.
        parallel: how several processes, started by `torchrun`, divide the work (see docs/TRAINING.md): "layers", each
            with some of the layers; "features", each with some features of every layer; a pair [l, f] of both, layers
            over l groups of f processes that share features; "data", each with a copy, of a part of every batch; or
            "none", each for itself. None for "layers" where there are as many layers as processes, else (and for a
            cross-layer transcoder) "features".

    Raises:
        ValueError: a setting is out of range; the sentence says which and why.
    """

    d_sae: int = 1024
    expansion_factor: int | None = None
    k: int = 32
    activation: Activation | None = None
    layers: Sequence[int] | None = None
    hook_name: str = "mlp.hook_in"
    hook_name_out: str = "hook_mlp_out"
    skip_connection: bool = False
    training_tokens: int = 1_000_000
    train_batch_size_tokens: int = 1024
    grad_acc_steps: int = 1
    micro_acc_steps: int = 1
    context_size: int | None = None
    store_batch_size_prompts: int = 32
    n_batches_in_buffer: int = 8
    exclude_bos: bool = True
    bos_token_id: int | None = None
    lr: float = 2e-3
    lr_scheduler_name: str = "linear"
    lr_end: float | None = None
    lr_warm_up_steps: int = 50
    lr_decay_steps: int | None = None
    adam_beta1: float = 0.9
    adam_beta2: float = 0.99
    optimizer: str = "adam"
    decoder_norm: bool = False
    max_grad_norm: float | None = 1.0
    auxk_alpha: float | None = None
    auxk_k: int = 32
    dead_feature_window: int | None = None
    seed: int = 0
    device: str | None = None
    dtype: str = "float32"
    architecture: str | None = None
    jumprelu_init_threshold: float = 0.1
    exclude_padding: bool = True
    exclude_special_tokens: bool | Sequence[int] = False
    normalize_activations: str = "none"
    autocast_lm: bool = False
    act_store_dtype: str | None = None
    cross_layer: bool = False
    decoder_tying: str = "none"
    prefetch: int | None = None
    parallel: str | Sequence[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            "d_sae",
            "k",
            "training_tokens",
            "train_batch_size_tokens",
            "grad_acc_steps",
            "micro_acc_steps",
            "store_batch_size_prompts",
            "n_batches_in_buffer",
            "auxk_k",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"TrainConfig: {name} must be at least 1, got {getattr(self, name)}")
            if not isinstance(getattr(self, name), Integral) and name != "training_tokens":
                raise ValueError(f"TrainConfig: {name} must be a whole number, got {getattr(self, name)!r}")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"TrainConfig: {name} must lie in [0, 1), got {getattr(self, name)}")
        for name in ("lr_warm_up_steps", "auxk_alpha"):
            if not (getattr(self, name) or 0) >= 0:
                raise ValueError(f"TrainConfig: {name} must not be negative, got {getattr(self, name)}")
        for name in ("context_size", "lr_decay_steps", "dead_feature_window", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"TrainConfig: {name} must be positive or None, got {value}")
        if self.prefetch is not None and self.prefetch < 0:
            raise ValueError(f"TrainConfig: prefetch must be 0 or more, or None, got {self.prefetch}")
        if self.parallel not in (None, *PARALLEL) and (
            isinstance(self.parallel, str)
            or len(self.parallel) != 2
            or not all(isinstance(n, int) and n > 0 for n in self.parallel)
        ):
            raise ValueError(
                f"TrainConfig: parallel must be one of {', '.join(PARALLEL)}, None, or a pair [layers, features] of "
                f"positive numbers, got {self.parallel!r}"
            )
        if not self.lr > 0:
            raise ValueError(f"TrainConfig: lr must be positive, got {self.lr}")
        self.lr_scheduler_name = SYNONYMS.get(self.lr_scheduler_name, self.lr_scheduler_name)
        if self.lr_scheduler_name not in SCHEDULERS:
            raise ValueError(
                f"TrainConfig: lr_scheduler_name must be one of {', '.join(SCHEDULERS)}, got {self.lr_scheduler_name!r}"
            )
        if self.lr_scheduler_name == "constant" and not (self.lr_end is None and self.lr_decay_steps is None):
            raise ValueError(
                "TrainConfig: with lr_scheduler_name='constant' the rate never falls; for a fall at the end write "
                "lr_scheduler_name='linear' with lr_decay_steps"
            )
        if self.lr_end is not None and not 0 <= self.lr_end <= self.lr:
            raise ValueError(f"TrainConfig: lr_end must lie between 0 and lr={self.lr}, got {self.lr_end}")
        if self.architecture not in (None, *ARCHITECTURES):
            raise ValueError(
                f"TrainConfig: architecture must be one of {', '.join(ARCHITECTURES)}, got {self.architecture!r}"
            )
        if self.architecture is not None and self.activation is not None:
            raise ValueError(
                f"TrainConfig: architecture={self.architecture!r} and activation={self.activation!r} say the same "
                "thing twice; give one of them"
            )
        if isinstance(self.activation, TopK | BatchTopK) and self.k not in (TrainConfig.k, self.activation.k):
            raise ValueError(f"TrainConfig: k={self.k} and activation={self.activation!r} disagree; leave k out")
        if self.architecture == "matryoshka_batchtopk" and self.matryoshka_widths is None:
            raise ValueError("TrainConfig: architecture='matryoshka_batchtopk' needs matryoshka_widths, like [64, 256]")
        if not self.jumprelu_init_threshold > 0:
            raise ValueError(
                f"TrainConfig: jumprelu_init_threshold must be positive, got {self.jumprelu_init_threshold}"
            )
        if self.autoencodes and self.skip_connection:
            raise ValueError(
                "TrainConfig: skip_connection lets an autoencoder copy its input; leave it out where hook_name and "
                "hook_name_out are the same"
            )
        self._check_cross_layer()
        rule = self.trained_activation
        if self.expansion_factor is not None and (self.expansion_factor < 1 or self.d_sae != TrainConfig.d_sae):
            raise ValueError(
                f"TrainConfig: expansion_factor={self.expansion_factor} must be at least 1, and goes without d_sae, "
                "which it stands for"
            )
        if isinstance(rule, TopK | BatchTopK) and rule.k > self.d_sae and self.expansion_factor is None:
            raise ValueError(f"TrainConfig: k={rule.k} exceeds d_sae={self.d_sae}; choose k <= d_sae")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"TrainConfig: optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        if self.dtype not in DTYPES:
            raise ValueError(
                f"TrainConfig: dtype must be one of {', '.join(DTYPES)} (16-bit weights do not train "
                f"well), got {self.dtype!r}"
            )
        if self.normalize_activations not in NORMALIZATIONS:
            raise ValueError(
                f"TrainConfig: normalize_activations must be one of {', '.join(NORMALIZATIONS)} (what depends on the "
                f"row cannot be folded into weights), got {self.normalize_activations!r}"
            )
        if self.act_store_dtype not in (None, *STORED):
            raise ValueError(
                f"TrainConfig: act_store_dtype must be one of {', '.join(STORED)}, or None (float16 ends at 65504, "
                f"which some activations exceed), got {self.act_store_dtype!r}"
            )
        if self.dtype == "float64" and (self.autocast_lm or self.act_store_dtype is not None):
            raise ValueError(
                "TrainConfig: autocast_lm and act_store_dtype round activations, and dtype='float64' asks for all of "
                "their digits; leave them out, or train in float32"
            )

    @classmethod
    def from_sparsify(cls, **options: Any) -> TrainConfig:
        """From the settings of EleutherAI sparsify under its names, those of `sae` (a mapping or its own dataclass) or
        beside it; what is not given is as sparsify has it. TrainConfig's own settings may stand among them. Warns once
        of what means something else here; docs/migration/sparsify.md has the table.

        Args:
            d_in: width of the activations, from which sparsify takes its learning rate and `auxk_k`.

        Raises:
            ValueError: what cannot be had here; the sentence says what can.
        """
        from pullback.training.names import sparsify

        return cls._noted(*sparsify.from_sparsify(sparsify.with_defaults(options), cls.__dataclass_fields__))

    @classmethod
    def from_saelens(cls, **options: Any) -> TrainConfig:
        """From the settings of SAELens' LanguageModelSAERunnerConfig and of its `sae`, as `from_sparsify` does; see
        docs/migration/saelens.md."""
        from pullback.training.names import saelens

        return cls._noted(*saelens.from_saelens(saelens.with_defaults(options), cls.__dataclass_fields__))

    @classmethod
    def _noted(cls, settings: dict[str, Any], notes: list[str]) -> TrainConfig:
        if notes:
            warnings.warn("\n  ".join(["settings under other names:", *notes]), stacklevel=3)
        return cls(**settings)

    def sized(self, d_in: int) -> TrainConfig:
        """With `d_sae` in place of `expansion_factor`, for inputs of this width."""
        if self.expansion_factor is None:
            return self
        return replace(self, d_sae=self.expansion_factor * d_in, expansion_factor=None)

    def _check_cross_layer(self) -> None:
        if self.decoder_tying not in DECODER_TYINGS:
            raise ValueError(
                f"TrainConfig: decoder_tying must be one of {', '.join(DECODER_TYINGS)}, got {self.decoder_tying!r}"
            )
        if not self.cross_layer:
            if self.decoder_tying != "none":
                raise ValueError("TrainConfig: decoder_tying goes with cross_layer=True; leave it out, or set that")
            return
        if self.matryoshka_widths is not None:
            raise ValueError(
                "TrainConfig: matryoshka_widths nest the reconstruction of one layer, which those of several layers "
                "depend on; leave them out with cross_layer=True"
            )
        if self.loss == "reference":
            raise ValueError(
                'TrainConfig: loss="reference" is that of one layer and its ghost gradients; with cross_layer=True '
                'choose "fvu" or "paper"'
            )
        if self.parallel == "layers" or (not isinstance(self.parallel, str | None) and self.parallel[0] > 1):
            raise ValueError(
                f"TrainConfig: parallel={self.parallel!r} gives layers to processes that know nothing of each other, "
                "and those of a cross-layer transcoder have common residuals in every step; choose parallel="
                '"features", which divides each layer, or "data"'
            )
        for name, only in (("normalize_activations", "none"), ("micro_acc_steps", 1)):
            if getattr(self, name) != only:
                raise ValueError(
                    f"TrainConfig: {name} goes with per-layer transcoders; leave it out with cross_layer=True"
                )
        if self.autoencodes:
            raise ValueError(
                "TrainConfig: an autoencoder writes what it reads, to no other layer; with cross_layer=True let "
                "hook_name and hook_name_out differ"
            )

    @property
    def trained_activation(self) -> Activation:
        """The sparsity rule that is trained."""
        if self.activation is not None:
            return self.activation
        if self.architecture in ("batchtopk", "matryoshka_batchtopk"):
            return BatchTopK(self.k)
        if self.architecture == "standard":
            return ReLU()
        return JumpReLU(self.jumprelu_init_threshold) if self.architecture == "jumprelu" else TopK(self.k)

    @property
    def autoencodes(self) -> bool:
        """Whether the target is the input."""
        return self.hook_name == self.hook_name_out

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def store_dtype(self) -> torch.dtype:
        """Of rows in the mixing buffer."""
        return STORED[self.act_store_dtype or "float32"] if self.dtype == "float32" else self.torch_dtype

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimisation step."""
        return self.train_batch_size_tokens * self.grad_acc_steps

    @property
    def micro_batch_size(self) -> int | None:
        """Rows worked through at a time, None for all of a batch."""
        if self.grad_acc_steps == self.micro_acc_steps == 1:
            return None
        return -(-self.train_batch_size_tokens // self.micro_acc_steps)

    @property
    def n_steps(self) -> int:
        """Optimisation steps of the run."""
        return -(-self.training_tokens // self.tokens_per_step)

    @property
    def dead_after(self) -> int:
        """`dead_feature_window` with its default filled in."""
        return self.dead_feature_window or max(1, self.training_tokens // 50)

    def lr_at(self, step: int) -> float:
        """Learning rate of step 0, 1, ...; see `Schedule`."""
        return Schedule(
            self.lr_scheduler_name, self.n_steps, self.lr, self.lr_end, self.lr_warm_up_steps, self.lr_decay_steps
        ).at(step)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {name: _plain(value) for name, value in vars(self).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple | range):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float | bool) else repr(value)
