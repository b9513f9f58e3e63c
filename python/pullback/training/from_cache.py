"""Training on cached activations: all layers, and several configurations at once, without the model."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from pullback.training.cached import CachedActivations
from pullback.training.config import TrainConfig
from pullback.training.loggers import LoggingConfig
from pullback.training.loop import announce, fit
from pullback.training.run import Trained
from pullback.training.several import SHARED, finished, given_configs, output_paths
from pullback.training.team import meeting
from pullback.training.trainer import kept_if_stopped, opened


def train_on_cache(
    cache: CachedActivations | str | os.PathLike[str],
    config: TrainConfig | None = None,
    *,
    configs: Sequence[TrainConfig] | None = None,
    verbose: bool = True,
    output_path: str | os.PathLike[str] | None = None,
    checkpoint_path: str | os.PathLike[str] | None = None,
    checkpoint_every_tokens: int | None = None,
    keep_checkpoints: int = 2,
    resume: bool = False,
    logger: LoggingConfig | None = None,
) -> Trained | list[Trained]:
    """Train one transcoder a layer on cached activations, reshuffled and repeated until `config.training_tokens`.

    Args:
        cache: a cache, or its folder.
        config: see TrainConfig; what it says about prompts and excluded tokens was settled when the cache was made.
        configs: instead of one: several seeds, k, widths or rates, each on the same batches, which are read once. They
            must agree on layers, targets, tokens, batch size, device and dtype; the first one's seed orders the
            batches. A transcoder and an autoencoder of its targets read the same cache.
        output_path: where the set is saved; of several, to `run_0`, `run_1`, ... inside.
        verbose, checkpoint_path, checkpoint_every_tokens, keep_checkpoints, resume, logger: as in `train`.

    Returns:
        The trained set, or a list of one for each of `configs`.

    Raises:
        ValueError: the cache lacks a layer, was read at other hooks or is damaged; configurations that do not agree.
        TrainingDiverged, KeyboardInterrupt: as in `train`.
    """
    every = given_configs("train_on_cache", config, configs, SHARED)
    first = every[0]
    cache = cache if isinstance(cache, CachedActivations) else CachedActivations(cache)
    layers = cache.chosen(None if first.layers is None else sorted(set(first.layers)))
    for one in every:
        _must_be_cached(one, cache)
    device = torch.device(first.device or "cpu")
    mixed = first.train_batch_size_tokens * first.n_batches_in_buffer
    widths = {layer: cache.widths[layer] for layer in layers}
    agreed = {"output_path": output_path, "checkpoint_path": checkpoint_path, "every": checkpoint_every_tokens}
    with meeting(every, layers, device, **agreed, resume=resume, logger=logger) as team:
        checkpoints = opened(team, checkpoint_path, keep_checkpoints, resume, checkpoint_every_tokens)
        runs = [team.run(one, widths, device, cache.readings) for one in every]
        batches = cache.batches(
            first.train_batch_size_tokens,
            layers=runs[0].layers,
            seed=first.seed,
            epochs=None,
            mix_tokens=mixed,
            dtype=first.torch_dtype,
            device=device,
        )
        if verbose:
            announce(runs, widths, first.train_batch_size_tokens)
        with kept_if_stopped(runs, output_paths(output_path, configs)):
            fit(
                runs,
                batches,
                verbose=verbose,
                checkpoints=checkpoints,
                checkpoint_every_tokens=checkpoint_every_tokens,
                logger=logger,
            )
        sets = finished(runs, output_path, configs)
        return sets[0] if configs is None else sets


def _must_be_cached(config: TrainConfig, cache: CachedActivations) -> None:
    """An autoencoder of the cached targets needs no other input."""
    for name in ("hook_name_out",) if config.autoencodes else ("hook_name", "hook_name_out"):
        if getattr(config, name) != getattr(cache, name):
            raise ValueError(
                f"{cache.path} was made with {name}={getattr(cache, name)!r}, and the config says "
                f"{getattr(config, name)!r}; let them agree"
            )
