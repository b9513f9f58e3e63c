"""Where the figures of a run go: a JSON line beside the checkpoints, TensorBoard, Weights & Biases.

Names follow SAELens. Without a prefix they are means over layers; `layer_3/` in front makes them one layer's, `run_0/`
one configuration's where several are trained at once.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pullback._util.atomic import atomic_save
from pullback.training.run import Run

N_TOKENS = "details/n_training_samples"


@dataclass
class LoggingConfig:
    """What is logged, how often, and where.

    Attributes:
        log_every_n_steps: steps between two reports; reading the figures waits for a GPU.
        tensorboard_path: folder for TensorBoard (needs the package `tensorboard`), None for none.
        log_to_wandb: whether to log to Weights & Biases (needs the package `wandb`).
        wandb_project, wandb_entity, run_name: passed on to `wandb.init`.
    """

    log_every_n_steps: int = 20
    tensorboard_path: str | os.PathLike[str] | None = None
    log_to_wandb: bool = False
    wandb_project: str = "pullback"
    wandb_entity: str | None = None
    run_name: str | None = None

    def __post_init__(self) -> None:
        if self.log_every_n_steps < 1:
            raise ValueError(f"LoggingConfig: log_every_n_steps must be at least 1, got {self.log_every_n_steps}")


class Logger(Protocol):
    """Takes {name: figure} at a number of tokens."""

    def log(self, figures: Mapping[str, float], n_tokens: int) -> None: ...

    def close(self) -> None: ...


def figures(runs: Sequence[Run], step: int, n_tokens: int) -> dict[str, float]:
    """The figures of the last batch, which was that of step 0, 1, ..., by name."""
    found: dict[str, float] = {N_TOKENS: float(n_tokens)}
    for i, run in enumerate(runs):
        front = "" if len(runs) == 1 else f"run_{i}/"
        layers = run.figures()
        for name in next(iter(layers.values())):
            column = [own[name] for own in layers.values()]
            found[front + name] = math.fsum(column) / len(column)
            found |= {f"{front}layer_{layer}/{name}": own[name] for layer, own in layers.items()}
        found[f"{front}details/current_learning_rate"] = run.config.lr_at(step)
    return found


def open_loggers(
    config: LoggingConfig, settings: Sequence[Mapping[str, Any]], directory: Path | None, start: int
) -> list[Logger]:
    """The loggers that are asked for, and a JSON-lines file wherever there are checkpoints.

    Args:
        settings: of each configuration, recorded where the logger can.
        directory: of the checkpoints.
        start: tokens used before; what the file says beyond them, a run that was killed will say again.

    Raises:
        ValueError: a logger's package is not installed.
    """
    loggers: list[Logger] = []
    if directory is not None:
        loggers.append(JsonLines(directory / "log.jsonl", start))
    if config.tensorboard_path is not None:
        loggers.append(TensorBoard(config.tensorboard_path, start))
    if config.log_to_wandb:
        loggers.append(Wandb(config, settings))
    return loggers


class JsonLines:
    """A line {"details/n_training_samples": ..., name: figure, ...} a report."""

    def __init__(self, file: Path, start: int) -> None:
        if file.exists():
            atomic_save(file, "".join(f"{line}\n" for line in _lines_up_to(file, start)))
        self._file = open(file, "a", encoding="utf-8")  # noqa: SIM115  (open as long as the run)

    def log(self, figures: Mapping[str, float], n_tokens: int) -> None:  # noqa: ARG002
        self._file.write(json.dumps(dict(figures)) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _lines_up_to(file: Path, n_tokens: int) -> list[str]:
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)[N_TOKENS] > n_tokens:
                break
        except (ValueError, KeyError):  # cut off by whatever ended the run
            break
        lines.append(line)
    return lines


class TensorBoard:
    def __init__(self, directory: str | os.PathLike[str], start: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError("tensorboard_path needs TensorBoard: pip install tensorboard") from error
        self._writer = SummaryWriter(os.fspath(directory), purge_step=start or None)

    def log(self, figures: Mapping[str, float], n_tokens: int) -> None:
        for name, figure in figures.items():
            self._writer.add_scalar(name, figure, n_tokens)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    def __init__(self, config: LoggingConfig, settings: Sequence[Mapping[str, Any]]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ValueError("log_to_wandb needs Weights & Biases: pip install wandb") from error
        try:
            self._run = wandb.init(
                project=config.wandb_project,
                entity=config.wandb_entity,
                name=config.run_name,
                config=dict(settings[0]) if len(settings) == 1 else {f"run_{i}": one for i, one in enumerate(settings)},
            )
        except Exception as error:  # no key, no network: its own kinds of errors, of no class that is promised
            raise ValueError(f"log_to_wandb: Weights & Biases does not start: {error}") from error

    def log(self, figures: Mapping[str, float], n_tokens: int) -> None:
        self._run.log(dict(figures), step=n_tokens)

    def close(self) -> None:
        self._run.finish()
