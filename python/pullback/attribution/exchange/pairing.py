"""Layer and feature id in one integer: the Cantor pairing, which viewers decode with schema_version 1."""

from __future__ import annotations

from math import isqrt


def cantor(layer: int, feature: int) -> int:
    return (layer + feature) * (layer + feature + 1) // 2 + feature


def uncantor(paired: int) -> tuple[int, int]:
    """(layer, feature)."""
    diagonal = (isqrt(8 * paired + 1) - 1) // 2
    feature = paired - diagonal * (diagonal + 1) // 2
    return diagonal - feature, feature
