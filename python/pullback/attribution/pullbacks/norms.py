"""Two ways to read through a norm whose denominator depends on the input (METHODS 1.6)."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from pullback.lens import Norm


class NormRule(Protocol):
    """What <v, norm(x)> is in terms of x: factor * <direction, x>, and what the rule leaves to a bias.

    The direction is the same whatever the input; the factor holds what depends on it.
    """

    def direction(self, norm: Norm, v: Tensor) -> Tensor:
        """Vectors v (r, d) read behind the norm, as read before it."""
        ...

    def factor(self, norm: Norm, v: Tensor, x: Tensor, scale: Tensor) -> Tensor:
        """Of streams x (T, d) whose denominators are scale (T, 1); (r, T), or (1, T) for all v alike."""
        ...


class Frozen:
    """Weights and centring are part of the direction, the denominator is a number: exactly linear. The norm's bias is
    left out."""

    def direction(self, norm: Norm, v: Tensor) -> Tensor:
        return norm.pullback(v, v.new_ones(1))

    def factor(self, norm: Norm, v: Tensor, x: Tensor, scale: Tensor) -> Tensor:  # noqa: ARG002
        return scale.T.reciprocal()


class Ratio:
    """As the code of Dunefsky et al. has it: the direction is v itself, and the factor a `ratio`. It holds centring and
    bias, differs from direction to direction, and is anything, of either sign, where <v, x> is near 0."""

    def direction(self, norm: Norm, v: Tensor) -> Tensor:  # noqa: ARG002
        return v

    def factor(self, norm: Norm, v: Tensor, x: Tensor, scale: Tensor) -> Tensor:
        return ratio(v @ norm(x, scale).T, v @ x.T)


def ratio(behind: Tensor, before: Tensor) -> Tensor:
    """<v, norm(x)> over <v, x>; 0 where that has no value."""
    return (behind / before).where(before != 0, before.new_zeros(()))


RULES: dict[str, NormRule] = {"frozen": Frozen(), "ratio": Ratio()}


def rule(ln: str) -> NormRule:
    """Raises ValueError for an unknown name."""
    if ln not in RULES:
        raise ValueError(f"pullback: ln must be one of {', '.join(RULES)}, got {ln!r}")
    return RULES[ln]
