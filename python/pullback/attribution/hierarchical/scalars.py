"""What a live pass can be asked to explain, as the scalar that gradients are taken of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor

from pullback.attribution.asked import DirectionTarget, FeatureTarget, LogitDifference, LogitTarget, as_targets
from pullback.attribution.hierarchical.live import LivePass
from pullback.attribution.reader import terms, token_id

ScalarOf: TypeAlias = Callable[[LivePass], Tensor]


def scalar_of(live: LivePass, target: Any) -> Tensor:
    """A scalar of the pass: what a function makes of it; a demeaned logit or a combination of them, or what a feature
    reads, as `attribute` has them; None: the likeliest next token.

    Raises ValueError for several targets, one that this prompt does not have, or a function that gives no scalar.
    """
    if callable(target):
        return _given(target(live))
    if target is None:
        target = int(live.logits[-1].argmax())
    asked = as_targets(target)
    if len(asked) != 1:
        raise ValueError(f"through the model: one target at a time is explained, got {len(asked)}")
    (one,) = asked
    if isinstance(one, LogitTarget):
        return _combined(live, one.position, [token_id(live.lens, one.token)], [1.0])
    if isinstance(one, LogitDifference):
        return _combined(live, one.position, *terms(live.lens, one))
    if isinstance(one, FeatureTarget):
        return _feature(live, one)
    assert isinstance(one, DirectionTarget)
    raise ValueError(
        "through the model: a direction is explained by a function, lambda run: run.at[site][position] @ vector, with "
        "sites=[site]"
    )


def _given(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        said = f"{list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"through the model: a target function gives one number with a gradient, made of run.logits, run.features "
            f"or run.at; got {said}"
        )
    return value.reshape(())


def _combined(live: LivePass, position: int | None, ids: list[int], coefficients: list[float]) -> Tensor:
    logits = live.logits[_position(live, -1 if position is None else position)]
    return (logits[ids] - logits.mean()) @ logits.new_tensor(coefficients)


def _feature(live: LivePass, target: FeatureTarget) -> Tensor:
    run = live.inserted
    sets, what = (run.attention_saes, "autoencoder") if target.attention else (run.transcoders, "transcoder")
    if sets is None or target.layer not in sets:
        raise ValueError(f"through the model: {target!r}: there is no {what} of layer {target.layer}")
    site = live.lens.sites(sets, [target.layer])[target.layer][1]
    return live.features[site].at(_position(live, target.position), target.feature)


def _position(live: LivePass, position: int) -> int:
    T = len(live.logits)
    if not -T <= position < T:
        raise ValueError(f"through the model: position {position} lies outside the prompt, which has {T} tokens")
    return position % T
