"""`sweep.json`: what was trained and measured, complete after every group of arms."""

from __future__ import annotations

import json
import math
import platform
import zlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from pullback._util.atomic import atomic_save
from pullback._util.version import version
from pullback.training.evaluation import Report
from pullback.training.source import Batch
from pullback.training.sweep.grid import KNOBS, Arm
from pullback.training.sweep.matched import matched

FORMAT = 1


class Record:
    """The file of a sweep, read where one was begun.

    Args:
        path: the file.
        arms: what the sweep will have; a finished one of the same name must have the same settings.
        model: {layer: how the model was read}
        evaluation: {name: batches that arms are measured on}

    Raises:
        ValueError: the file is of another sweep.
    """

    def __init__(
        self,
        path: Path,
        arms: Sequence[Arm],
        model: Mapping[str, Any],
        evaluation: Mapping[str, Sequence[Batch]],
    ) -> None:
        self.path = path
        identities = {name: _identity(batches) for name, batches in evaluation.items()}
        about = _plain({"format": FORMAT, "model": model, "evaluation": identities})
        self.content: dict[str, Any] = about | {"versions": _versions(), "arms": {}, "matched": {}}
        if path.exists():
            self.content = _continued(path, about, arms)

    def has(self, arm: Arm) -> bool:
        return arm.name in self.content["arms"]

    def add(self, arms: Sequence[Arm], reports: Mapping[str, Sequence[Report]]) -> None:
        """Write finished arms down; reports {evaluation: of each of them}."""
        for i, arm in enumerate(arms):
            found = {
                "kind": arm.kind,
                "architecture": arm.architecture,
                "setting": KNOBS[arm.architecture],
                "value": arm.value,
                "seed": arm.config.seed,
                "settings": arm.config.to_dict(),
                "figures": {name: of_arms[i].to_dict() for name, of_arms in reports.items()},
            }
            self.content["arms"][arm.name] = _plain(found)
        self.content["matched"] = _plain(matched(self.content["arms"]))
        atomic_save(self.path, json.dumps(self.content, indent=1, allow_nan=False) + "\n")


def _continued(path: Path, about: dict[str, Any], arms: Sequence[Arm]) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    for name, new in about.items():
        if content.get(name) != new:
            raise ValueError(f"{path} is of a sweep with another {name}; give another folder, or remove it")
    for arm in arms:
        old = content["arms"].get(arm.name, {}).get("settings")
        new = _plain(arm.config.to_dict())
        if old is not None and old != new:
            other = ", ".join(key for key in new if old.get(key) != new[key])
            raise ValueError(f"{path} has {arm.name} with another {other}; give another folder, or remove it")
    return content


def _identity(batches: Sequence[Batch]) -> dict[str, int]:
    """Enough to tell other tokens from these."""
    checksum = 0
    for tensor in (tensor for batch in batches for tensor in batch):
        checksum = zlib.crc32(tensor.contiguous().cpu().numpy().tobytes(), checksum)
    return {"prompts": sum(len(ids) for ids, _ in batches), "checksum": checksum}


def _versions() -> dict[str, str]:
    found = {"pullback": version(), "torch": str(torch.__version__), "python": platform.python_version()}
    try:
        found["transformer_lens"] = metadata.version("transformer_lens")
    except metadata.PackageNotFoundError:
        found["transformer_lens"] = "unknown"
    return found


def _plain(value: Any) -> Any:
    """As JSON has it: keys are strings, and what is no number is null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
