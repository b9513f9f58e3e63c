"""Imported by the scripts that run beside a neighbour: needs torch and safetensors only."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

D, F = 64, 512


def fill(module: nn.Module, but: str = "nothing") -> None:
    """Random weights, about as large as trained ones."""
    for name, parameter in module.named_parameters():
        if but not in name:
            parameter.copy_(torch.randn_like(parameter) / D**0.5)


def finish(folder: Path, package: str, outputs: dict[str, Tensor], options: dict[str, dict[str, Any]]) -> None:
    """Leave what came out of their own dictionaries, and how each is to be loaded here."""
    save_file(outputs, folder / "outputs_of_theirs.safetensors")
    (folder / "theirs.json").write_text(json.dumps({"version": version(package), "options": options}))
