"""Two shares compared: an exact test of whether they differ, and an interval for by how much."""

from __future__ import annotations

from math import comb, sqrt

Z95 = 1.959963984540054


def fisher_exact(a: int, n: int, b: int, m: int) -> float:
    """Two-sided p of a of n against b of m: the chance of a table that is no likelier, margins given (Fisher 1934)."""
    total, hits = n + m, a + b

    def ways(x: int) -> int:
        return comb(n, x) * comb(m, hits - x)

    possible = range(max(0, hits - m), min(n, hits) + 1)
    return sum(ways(x) for x in possible if ways(x) <= ways(a)) / comb(total, hits)


def wilson(a: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927)."""
    p, z2 = a / n, Z95**2
    middle, half = p + z2 / (2 * n), Z95 * sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n)


def difference(a: int, n: int, b: int, m: int) -> tuple[float, float, float]:
    """a / n less b / m, and its 95 % interval made of both score intervals (Newcombe 1998, method 10)."""
    p, q = a / n, b / m
    (low_p, high_p), (low_q, high_q) = wilson(a, n), wilson(b, m)
    d = p - q
    return d, d - sqrt((p - low_p) ** 2 + (high_q - q) ** 2), d + sqrt((high_p - p) ** 2 + (q - low_q) ** 2)
