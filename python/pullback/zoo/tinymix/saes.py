"""The autoencoders of attention outputs that ship with tiny-mix: how they are trained, and what is true of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pullback.zoo.tinymix import tasks, transcoders
from pullback.zoo.tinymix.files import ATTENTION_SAES, DATA

if TYPE_CHECKING:
    from pullback.training import TrainConfig
    from pullback.transcoders import TranscoderSet

N_STEPS = 1500
LARGEST_FVU = 0.12
HOOK = "hook_attn_out"


def config(steps: int = N_STEPS, seed: int = 0) -> TrainConfig:
    """The settings of the shipped transcoders, reading and writing attention outputs."""
    return dataclasses.replace(transcoders.config(steps, seed), hook_name=HOOK, hook_name_out=HOOK)


def train_saes(model: Any, seed: int = 0, steps: int = N_STEPS, *, verbose: bool = True) -> TranscoderSet:
    """One autoencoder a layer, all four from the same forward passes over the training side of every task."""
    from pullback.training import train

    batches = tasks.training_batches(seed + 1, include_bos=True)
    return cast("TranscoderSet", train(model, batches, config(steps, seed), verbose=verbose))


def load_saes(folder: str | Path = DATA) -> TranscoderSet:
    """The shipped set, float32 in memory. Raises FileNotFoundError when `folder` has none."""
    from pullback.transcoders import load_transcoders

    return cast("TranscoderSet", load_transcoders(Path(folder) / ATTENTION_SAES))
