"""The version that files record."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """Of this package, "unknown" where it is not installed."""
    try:
        return metadata.version("pullback")
    except metadata.PackageNotFoundError:
        return "unknown"
