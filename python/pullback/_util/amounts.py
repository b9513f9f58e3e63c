"""Large numbers as people read them."""

from __future__ import annotations

PREFIXES = ("", "k", "M", "G", "T")


def amount(value: float, unit: str) -> str:
    """Three digits, a prefix and a unit: 55.8 GB."""
    value = float(f"{value:.3g}")  # rounded first: 999,900 are 1 M, not 1000 k
    size = next((n for n in range(len(PREFIXES) - 1, 0, -1) if abs(value) >= 1000**n), 0)
    return f"{value / 1000**size:.3g} {PREFIXES[size]}{unit}"
