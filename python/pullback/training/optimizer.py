"""Adam for a transcoder whose gradient is sparse: the moments, and the step on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pullback.ops import (
    DictionaryParams,
    SparseGradient,
    adam_,
    dense_adam_,
    feature_order,
    gradient_norm,
    on_huge_pages,
)
from pullback.ops.screen import Screen
from pullback.training.loss import entry_features
from pullback.training.share import WHOLE, Share
from pullback.transcoders import FeatureLayer


class Gradient(NamedTuple):
    """The gradient of a loss by the weights of a transcoder."""

    features: SparseGradient
    """by the rows of W_enc, b_enc and W_dec"""
    b_dec: Tensor
    """Float[Tensor, "d_out"]"""
    W_skip: Tensor | None = None
    """Float[Tensor, "d_out d_in"]"""
    more: Mapping[str, Tensor] = {}
    """by weights that are not the transcoder's own but its features', by name"""

    def common(self) -> dict[str, Tensor]:
        """The parts that belong to no feature, by name of the weight."""
        return {name: t for name in ("b_dec", "W_skip") if (t := getattr(self, name)) is not None}

    def dense(self) -> dict[str, Tensor]:
        """The parts that are not sparse, by name of the weight."""
        return self.common() | dict(self.more)


class Adam:
    """The steps of `torch.optim.Adam`, without a dense gradient: each row of the gradient is summed where its weights
    are updated.

    Args:
        transcoder: whose weights move; float32 or float64.
        lr: learning rate; assign `lr` to follow a schedule.
        betas: decays of the two moments.
        eps: added to the root of the second moment.
        decoder_norm: keep decoder rows at unit norm. The gradient's component along a row, which the norm would undo,
            is removed before it reaches the moments.
        more: other weights that move along, by name, with dense gradients.
        share: the features that are held here.

    Attributes:
        exp_avg, exp_avg_sq: the moments, by name of the weight.
        n_steps: steps taken.
    """

    lazy = False

    def __init__(
        self,
        transcoder: FeatureLayer,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        *,
        decoder_norm: bool = False,
        more: Mapping[str, Tensor] | None = None,
        share: Share = WHOLE,
    ) -> None:
        self.transcoder = transcoder
        self.share = share
        self.more = dict(more or {})
        self.lr = lr
        self.betas = betas
        self.eps = eps
        self.decoder_norm = decoder_norm
        self.n_steps = 0
        weights = self._weights()
        self.exp_avg, self.exp_avg_sq = (
            {name: on_huge_pages(torch.empty_like(weight.detach())).zero_() for name, weight in weights.items()}
            for _ in range(2)
        )

    def _weights(self) -> dict[str, Tensor]:
        return dict(self.transcoder.named_parameters()) | self.more

    def squared_norm(self, gradient: Gradient, enough: float = 0.0) -> Tensor:
        """Of the gradient as the step will use it, or an upper bound of that where it is at most `enough`, which is
        quickly found: Float64[Tensor, ""]."""
        common, more = (_squares(parts, gradient.b_dec) for parts in (gradient.common(), gradient.more))
        # A bound of a part says nothing of the sum where other parts are held elsewhere.
        limit = enough - common - more if self.share.whole else torch.zeros_like(common)
        own = more + gradient_norm(gradient.features, self.transcoder.W_dec.flatten(1), self.decoder_norm, limit)
        return common + self.share.sum(own)

    def step(self, gradient: Gradient, grad_scale: float | Tensor = 1.0, screen: Screen | None = None) -> None:
        """Move the weights against grad_scale times the gradient; a scale that is not finite moves nothing.

        Args:
            gradient: of the loss by all weights.
            grad_scale: number, or scalar tensor on the device of the weights.
            screen: shadow of W_enc that is to follow it.
        """
        self.n_steps += 1
        weights = self._weights()
        adam_(
            gradient.features,
            _features(weights),
            _features(self.exp_avg),
            _features(self.exp_avg_sq),
            grad_scale,
            self.lr,
            self.n_steps,
            betas=self.betas,
            eps=self.eps,
            remove_parallel=self.decoder_norm,
            unit_norm=self.decoder_norm,
            lazy=self.lazy,
            screen=screen,
        )
        for name, part in gradient.dense().items():
            moved = weights[name], self.exp_avg[name], self.exp_avg_sq[name]
            dense_adam_(part, *moved, grad_scale, self.lr, self.n_steps, betas=self.betas, eps=self.eps)

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs of the optimizer; the tensors are the live ones."""
        return {"n_steps": self.n_steps, "lr": self.lr, "exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`.

        Raises:
            ValueError: its moments belong to other weights.
        """
        for group in ("exp_avg", "exp_avg_sq"):
            own, given = getattr(self, group), state[group]
            found, wanted = ({name: list(t.shape) for name, t in tensors.items()} for tensors in (given, own))
            if found != wanted:
                raise ValueError(f"load_state_dict: {group} must have the shapes {wanted}, got {found}")
        for group in ("exp_avg", "exp_avg_sq"):
            for name, moment in getattr(self, group).items():
                moment.copy_(state[group][name])
        self.n_steps, self.lr = int(state["n_steps"]), float(state["lr"])


class LazyAdam(Adam):
    """Adam that moves only the rows of features with a gradient in this step.

    It differs from Adam: a feature that does not fire keeps its weights and its moments, where Adam would let both move
    on by momentum and decay; the bias corrections still count all steps. Steps cost less where few features fire, and
    rare features keep the size of the gradients they last had. Adam and LazyAdam agree where every feature fires in
    every step.
    """

    lazy = True

    def step(self, gradient: Gradient, grad_scale: float | Tensor = 1.0, screen: Screen | None = None) -> None:
        super().step(gradient._replace(features=_of_what_fired(gradient.features)), grad_scale, screen)


OPTIMIZERS = {"adam": Adam, "lazy_adam": LazyAdam}


def _of_what_fired(gradient: SparseGradient) -> SparseGradient:
    """The same sums, with the empty slots of a top-k, which name features that did not fire, among the entries of one
    that did: to leave them out, how many there are would have to be waited for."""
    if len(gradient.order) == 0:
        return gradient
    features, fired = entry_features(gradient), (gradient.values != 0) | (gradient.dvalues != 0)
    one = features.gather(0, fired.to(torch.uint8).argmax(0, keepdim=True))
    starts, order = feature_order(torch.where(fired, features, one), len(gradient.starts) - 1)
    return gradient._replace(starts=starts, order=order)


def _squares(parts: Mapping[str, Tensor], like: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64, device=like.device)
    for part in parts.values():
        total += part.double().square().sum()
    return total


def _features(tensors: Mapping[str, Tensor]) -> DictionaryParams:
    W_enc, b_enc, W_dec = (tensors[name] for name in DictionaryParams._fields)
    return DictionaryParams(W_enc, b_enc, W_dec.flatten(1))  # one row a feature, whatever the layers it writes to
