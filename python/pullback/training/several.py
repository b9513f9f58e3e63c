"""Several configurations on one stream of batches: what they have to agree on, and where their sets go."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pullback._util.atomic import atomic_save
from pullback.training.config import TrainConfig
from pullback.training.run import Run, Trained

RUNS = "runs.json"
# What batches are made of, whatever they come from.
SHARED = (
    "layers", "hook_name_out", "training_tokens", "train_batch_size_tokens", "grad_acc_steps", "device", "dtype",
    "parallel",
)  # fmt: skip
# What a model is read with, beside that.
SHARED_READING = (
    "context_size", "store_batch_size_prompts", "n_batches_in_buffer", "exclude_bos", "bos_token_id",
    "exclude_padding", "exclude_special_tokens", "autocast_lm", "act_store_dtype",
)  # fmt: skip

OutputPath = str | os.PathLike[str] | None


def given_configs(
    caller: str, config: TrainConfig | None, configs: Sequence[TrainConfig] | None, shared: Sequence[str]
) -> list[TrainConfig]:
    """The one configuration, or all of them.

    Args:
        caller: the function that was given them, for what it is told.
        shared: names of the settings that must be the same in all.

    Raises:
        ValueError: both or none were given, one is no TrainConfig, or they do not agree.
    """
    if configs is not None and (config is not None or not configs):
        raise ValueError(f"{caller}: give one config, or configs=[...] with at least one")
    every = [_checked(one) for one in ([config] if configs is None else configs)]
    for name in shared:
        _must_agree(caller, name, every)
    # An autoencoder of the targets has use for no other input.
    _must_agree(caller, "hook_name", [one for one in every if not one.autoencodes])
    return every


def hook_read(configs: Sequence[TrainConfig]) -> str:
    """Where inputs are read: only autoencoders do without."""
    return next((one for one in configs if not one.autoencodes), configs[0]).hook_name


def output_paths(output_path: OutputPath, configs: Sequence[TrainConfig] | None) -> list[OutputPath]:
    """Where each set goes: one to the path itself, of several to `run_0`, `run_1`, ... inside."""
    if output_path is None or configs is None:
        return [output_path] * len(configs or [None])
    return [Path(output_path) / f"run_{i}" for i in range(len(configs))]


def finished(runs: Sequence[Run], output_path: OutputPath, configs: Sequence[TrainConfig] | None) -> list[Trained]:
    """What was trained, saved where it belongs; of several, with a table that says which is which."""
    sets = [run.saved(path) for run, path in zip(runs, output_paths(output_path, configs), strict=True)]
    if output_path is not None and configs is not None and runs[0].reports:
        atomic_save(Path(output_path) / RUNS, json.dumps(runs_table(configs), indent=1))
    return sets


def runs_table(configs: Sequence[TrainConfig]) -> list[dict[str, Any]]:
    """For each of `run_0`, `run_1`, ...: the settings that are not the same in all of them, and all of them."""
    every = [config.to_dict() for config in configs]
    differing = [name for name in every[0] if any(one[name] != every[0][name] for one in every)]
    return [
        {"run": f"run_{i}", "differs": {name: one[name] for name in differing}, "config": one}
        for i, one in enumerate(every)
    ]


def _checked(config: TrainConfig | None) -> TrainConfig:
    config = config or TrainConfig()
    if not isinstance(config, TrainConfig):
        raise ValueError(
            f"train: config must be a TrainConfig, got {type(config).__name__}: write TrainConfig(k=16, ...)"
        )
    return config


def _must_agree(caller: str, name: str, configs: Sequence[TrainConfig]) -> None:
    found = [getattr(config, name) for config in configs]
    if any(value != found[0] for value in found):
        raise ValueError(f"{caller}: configs must agree on {name}, got {', '.join(map(repr, found))}")
