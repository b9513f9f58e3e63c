"""`pullback doctor`: which kernels this machine will use, and why."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from typing import Any

from pullback.commands.opening import command

PACKAGES = ("torch", "transformer_lens", "triton", "numpy", "safetensors")


def add(commands: Any) -> None:
    command(commands, "doctor", run, "say which kernels this machine will use, and why")


def run(_args: argparse.Namespace) -> None:
    print(report())


def report() -> str:
    """A few lines for a terminal or a bug report."""
    from pullback import ops

    facts = ops.describe()
    lines = [
        f"pullback {importlib.metadata.version('pullback')}, Python {platform.python_version()}, {platform.platform()}"
    ]
    lines += [f"  {name:18s} {_version(name)}" for name in PACKAGES]
    lines.append("kernels")
    lines += [f"  {key:18s} {_plain(value)}" for key, value in facts.items()]
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _plain(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return "; ".join(f"{k}: {_plain(v)}" for k, v in value.items())
    return str(value)
