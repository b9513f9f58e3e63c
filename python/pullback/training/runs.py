"""Which kind of run a configuration asks for."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pullback.training.config import TrainConfig
from pullback.training.crosslayer import CrossLayerRun
from pullback.training.run import PerLayerRun, Run, Widths, new_step
from pullback.training.share import WHOLE, Share
from pullback.transcoders import ModelReading


def new_run(
    config: TrainConfig,
    widths: Widths,
    device: torch.device,
    readings: Mapping[int, ModelReading | None],
    share: Share = WHOLE,
) -> Run:
    """A run of these layers, at its beginning, and of a share of the features of each."""
    config = config.sized(next(iter(widths.values()))[0])
    if config.cross_layer:
        return CrossLayerRun(config, widths, device, readings, share)
    return PerLayerRun(
        config,
        {
            layer: new_step(
                config, d_in, d_out, device, seed=config.seed + layer, reading=readings.get(layer), share=share
            )
            for layer, (d_in, d_out) in widths.items()
        },
    )
