"""Checkpoints from which a run goes on to the bit.

    latest                        the name of the newest complete checkpoint
    log.jsonl                     the run's figures, a line a report (see `loggers`)
    tokens_000000012800/
        state.json                settings, tokens used, place in the source, generators
        transcoders/              a set as `load_transcoders` reads it
        optimizer_{layer}.safetensors     moments, running variance, tokens since each feature fired
        buffer.safetensors        rows that wait in the mixing buffer

A run of several configurations keeps those of each under `run_{i}/`. One on several processes keeps its tensors
otherwise (see `distributed.checkpoint`), and either can go on from either. A checkpoint appears under its name when it
is complete and on disk, `latest` points to it afterwards, and only then do older ones go.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pullback._util.atomic import atomic_directory, atomic_save, sync_directory, sync_file
from pullback._util.version import version
from pullback.training.config import TrainConfig
from pullback.training.run import Run
from pullback.training.state import flattened, nested
from pullback.transcoders import load_transcoders

FORMAT = 1
STATE, LATEST, BUFFER, SHARDS = "state.json", "latest", "buffer.safetensors", "shards"
NAME = re.compile(r"tokens_\d{12}")
# What may differ between the two halves of one run: it does not change what is computed.
FREE_SETTINGS = ("prefetch", "parallel")


class Checkpoints:
    """The checkpoints of one run in one directory.

    Args:
        path: the directory; made if it is not there.
        keep: how many of the newest to keep.
        resume: whether the run may go on from what is there.

    Raises:
        ValueError: checkpoints are there and `resume` is False.
    """

    def __init__(self, path: str | os.PathLike[str], *, keep: int = 2, resume: bool = False) -> None:
        if keep < 1:
            raise ValueError(f"keep_checkpoints must be at least 1, got {keep}")
        self.path = Path(path)
        self.keep = keep
        self.path.mkdir(parents=True, exist_ok=True)
        if self._names() and not resume:
            raise ValueError(
                f"{self.path} holds checkpoints of another run; give resume=True to go on with it, or another folder"
            )
        for leftover in self.path.glob(".tokens_*"):  # of a run that was killed while it wrote
            shutil.rmtree(leftover, ignore_errors=True)

    def latest(self) -> Path | None:
        """The newest complete checkpoint, None where there is none."""
        pointer = self.path / LATEST
        names = self._names()
        named = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""
        if named in names:
            return self.path / named
        return self.path / names[-1] if names else None

    def save(self, n_tokens: int, runs: Sequence[Run], source: Any) -> Path:
        """Write a checkpoint; the older ones stay until it is complete.

        Args:
            n_tokens: tokens that the run has used.
            runs: what is trained, of every configuration.
            source: has a `state_dict()`.

        Raises:
            OSError: of the file system, a full disk for instance. The checkpoints before this one are intact.
        """
        target = self.target(n_tokens)
        with self.staged(target) as staging:
            numbers = []
            for place, run in zip(_places(staging, len(runs)), runs, strict=True):
                numbers.append({part: _write_part(place, part, own) for part, own in run.state_dict().items()})
                run.dictionary().save(place / "transcoders")
            buffered, position = flattened(source.state_dict())
            _write(staging / BUFFER, buffered)
            self.describe(staging, n_tokens, runs, numbers, position)
        self.publish(target)
        return target

    def target(self, n_tokens: int) -> Path:
        return self.path / f"tokens_{n_tokens:012d}"

    def staged(self, target: Path) -> AbstractContextManager[Path]:
        """A directory that becomes `target` when it is complete."""
        return atomic_directory(target, manifest=STATE, owned=lambda _name: True)

    def describe(
        self, staging: Path, n_tokens: int, runs: Sequence[Run], numbers: Sequence[Mapping[str, Any]], source: Any
    ) -> None:
        """Write what is not tensors: of each run the numbers of its parts, and the place in the source."""
        state = {
            "format": FORMAT,
            "pullback_version": version(),
            "torch_version": torch.__version__,
            "n_tokens": n_tokens,
            "configs": [_settings(run.config) for run in runs],
            "steps": numbers,
            "source": source,
        }
        atomic_save(staging / STATE, json.dumps(state, indent=1))

    def publish(self, target: Path) -> None:
        """Point to a complete checkpoint; older ones go."""
        atomic_save(self.path / LATEST, target.name)
        for name in self._names()[: -self.keep]:
            if name != target.name:
                self._remove(self.path / name)

    def load(self, runs: Sequence[Run], source: Any) -> int:
        """Put the newest checkpoint into fresh runs and a fresh source; returns the tokens used so far, 0 where there
        is no checkpoint.

        Raises:
            ValueError: the checkpoint is of another run, or damaged.
        """
        directory = self.latest()
        if directory is None:
            return 0
        state = _read_state(directory / STATE)
        _must_agree(directory, state["configs"], [_settings(run.config) for run in runs])
        if (directory / SHARDS).is_dir():
            from pullback.training.distributed.checkpoint import read_shards

            read_shards(directory, runs, source, state)
            return int(state["n_tokens"])
        try:
            for place, run, numbers in zip(_places(directory, len(runs)), runs, state["steps"], strict=True):
                parts = {part: nested(load_file(_optimizer(place, part)), own) for part, own in numbers.items()}
                run.load_state_dict(parts, load_transcoders(place / "transcoders"))
            buffered = {
                name: tensor if name.endswith("generator") else tensor.to(runs[0].device)
                for name, tensor in load_file(directory / BUFFER).items()
            }
        except (SafetensorError, OSError, KeyError) as error:
            raise ValueError(
                f"{directory} is damaged: {error}; remove it to go on from the checkpoint before it"
            ) from error
        source.load_state_dict(nested(buffered, state["source"]))
        return int(state["n_tokens"])

    def _names(self) -> list[str]:
        return sorted(
            entry.name for entry in self.path.iterdir() if NAME.fullmatch(entry.name) and (entry / STATE).is_file()
        )

    def _remove(self, directory: Path) -> None:
        # Under another name first: half of a checkpoint must not look like one.
        aside = directory.parent / f".{directory.name}.{secrets.token_hex(6)}.tmp"
        os.rename(directory, aside)
        shutil.rmtree(aside, ignore_errors=True)


def _places(directory: Path, n_runs: int) -> Iterator[Path]:
    for i in range(n_runs):
        place = directory if n_runs == 1 else directory / f"run_{i}"
        yield place


def _optimizer(place: Path, part: str) -> Path:
    return place / f"optimizer_{part}.safetensors"


def _write_part(place: Path, part: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors into a file; returns the numbers."""
    tensors, numbers = flattened(state)
    place.mkdir(exist_ok=True)
    _write(_optimizer(place, part), tensors)
    return numbers


def _write(file: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    except SafetensorError as error:  # what a full disk looks like from there
        raise OSError(f"could not write {file.name}: {error}; the checkpoints before it are intact") from error
    sync_file(file)
    sync_directory(file.parent)


def _read_state(file: Path) -> dict[str, Any]:
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}; remove its folder to go on from the one before") from error
    if state.get("format") != FORMAT:
        raise ValueError(
            f"{file} has format {state.get('format')!r}, and this version of pullback reads {FORMAT}: go on with "
            f"version {state.get('pullback_version')}"
        )
    return state


def _settings(config: TrainConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name not in FREE_SETTINGS}


def _must_agree(directory: Path, stored: list[dict[str, Any]], given: list[dict[str, Any]]) -> None:
    if len(stored) != len(given):
        raise ValueError(f"resume: {directory} is of {len(stored)} configurations, and {len(given)} were given")
    default = _settings(TrainConfig())
    for old, new in zip(stored, given, strict=True):
        differing = [name for name in new if old.get(name, default[name]) != new[name]]
        if differing:
            said = ", ".join(f"{name} was {old.get(name, default[name])!r}, is {new[name]!r}" for name in differing)
            raise ValueError(f"resume: {directory} is of a run with other settings ({said}); give those, or start anew")
