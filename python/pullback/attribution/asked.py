"""What a graph can be asked to explain, as its user says it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

Token: TypeAlias = int | str


@dataclass(frozen=True)
class LogitTarget:
    """The demeaned logit of one token.

    Attributes:
        token: its id, or a string that is one token.
        position: where it is predicted; negative ones count from the end. None: the graph's own position.
        weight: its part in influence and scores. None: its probability.
    """

    token: Token
    position: int | None = None
    weight: float | None = None


@dataclass(frozen=True, eq=False)
class LogitDifference:
    """A combination of demeaned logits.

    Attributes:
        tokens: two tokens, the first minus the second; or a coefficient for each token.
        label: what to call it (default: made of the tokens).
    """

    tokens: tuple[Token, Token] | Mapping[Token, float]
    position: int | None = None
    weight: float = 1.0
    label: str = ""


@dataclass(frozen=True)
class FeatureTarget:
    """The pre-activation of one feature, active or not.

    Attributes:
        attention: whether it is one of the layer's attention output, not of its MLP.
    """

    layer: int
    position: int
    feature: int
    weight: float = 1.0
    attention: bool = False


@dataclass(frozen=True, eq=False)
class DirectionTarget:
    """The dot product of a vector with the activations at one site: a probe, a steering vector, a concept.

    Attributes:
        vector: (d_model).
        site: "ln_final", its output; or inside blocks.{l}: hook_resid_pre, hook_resid_mid, hook_resid_post,
            ln2.hook_normalized, mlp.hook_in.
    """

    vector: Tensor
    site: str = "ln_final"
    position: int | None = None
    weight: float = 1.0
    label: str = ""


Target: TypeAlias = LogitTarget | LogitDifference | FeatureTarget | DirectionTarget
Asked: TypeAlias = Token | Target | Iterable[Token | Target] | Tensor | None
"""What `attribution_targets` may be."""


def as_targets(asked: Any) -> list[Target]:
    """One target or several, tokens among them, as a list of targets. Raises ValueError for none, or for a weight that
    is not positive."""
    if isinstance(asked, Tensor):
        asked = asked.reshape(-1).tolist()
    elif isinstance(asked, str | Target) or _is_custom(asked) or not isinstance(asked, Iterable):
        asked = [asked]
    targets = [_as_target(one) for one in asked]
    if not targets:
        raise ValueError(
            "attribute: attribution_targets is empty; give at least one target, or None for the likely tokens"
        )
    for target in targets:
        if target.weight is not None and not (target.weight > 0 and math.isfinite(target.weight)):
            raise ValueError(f"attribute: the weight of a target must be positive, got {target.weight} of {target!r}")
    return targets


def _as_target(one: Any) -> Target:
    if _is_custom(one):
        return DirectionTarget(one.vec, weight=float(one.prob), label=one.token_str)
    return one if isinstance(one, Target) else LogitTarget(one)


def _is_custom(one: Any) -> bool:
    """Whether this is circuit-tracer's CustomTarget: a direction at ln_final's output, its name and its weight."""
    return all(hasattr(one, name) for name in ("token_str", "prob", "vec"))
