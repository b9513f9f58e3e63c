"""Training on cached activations: all layers, and several configurations at once, without the model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from pullback.training.cached import CachedActivations
from pullback.training.config import TrainConfig
from pullback.training.loggers import LoggingConfig
from pullback.training.loop import announce, fit
from pullback.training.runs import new_run
from pullback.training.trainer import checked_config, kept_if_stopped, opened
from pullback.transcoders import CrossLayerTranscoder, TranscoderSet

# What batches are made of; configurations that share them must agree on it.
SHARED = ("layers", "hook_name_out", "training_tokens", "train_batch_size_tokens", "device", "dtype")


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
) -> TranscoderSet | CrossLayerTranscoder | list[TranscoderSet | CrossLayerTranscoder]:
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
    if configs is not None and (config is not None or not configs):
        raise ValueError("train_on_cache: give one config, or configs=[...] with at least one")
    every = [checked_config(one) for one in ([config] if configs is None else configs)]
    first = every[0]
    _must_share(every)
    cache = cache if isinstance(cache, CachedActivations) else CachedActivations(cache)
    layers = cache.layers if first.layers is None else sorted(set(first.layers))
    for one in every:
        _must_be_cached(one, cache)
    device = torch.device(first.device or "cpu")
    mixed = first.train_batch_size_tokens * first.n_batches_in_buffer
    batches = cache.batches(
        first.train_batch_size_tokens,
        layers=layers,
        seed=first.seed,
        epochs=None,
        mix_tokens=mixed,
        dtype=first.torch_dtype,
        device=device,
    )
    checkpoints = opened(checkpoint_path, keep_checkpoints, resume)
    widths = {layer: cache.widths[layer] for layer in layers}
    runs = [new_run(one, widths, device, cache.readings) for one in every]
    if output_path is None:
        outputs: list[str | os.PathLike[str] | None] = [None] * len(every)
    else:
        outputs = [output_path] if configs is None else [Path(output_path) / f"run_{i}" for i in range(len(every))]
    if verbose:
        announce(runs, widths, first.train_batch_size_tokens)
    with kept_if_stopped(runs, outputs):
        fit(
            runs,
            batches,
            verbose=verbose,
            checkpoints=checkpoints,
            checkpoint_every_tokens=checkpoint_every_tokens,
            logger=logger,
        )
    sets = [run.dictionary() for run in runs]
    for one, path in zip(sets, outputs, strict=True):
        if path is not None:
            one.save(path)
    return sets[0] if configs is None else sets


def _must_be_cached(config: TrainConfig, cache: CachedActivations) -> None:
    """An autoencoder of the cached targets needs no other input."""
    for name in ("hook_name_out",) if config.autoencodes else ("hook_name", "hook_name_out"):
        if getattr(config, name) != getattr(cache, name):
            raise ValueError(
                f"{cache.path} was made with {name}={getattr(cache, name)!r}, and the config says "
                f"{getattr(config, name)!r}; let them agree"
            )


def _must_share(configs: Sequence[TrainConfig]) -> None:
    for name in SHARED:
        found = [getattr(config, name) for config in configs]
        if any(value != found[0] for value in found):
            raise ValueError(f"train_on_cache: configs must agree on {name}, got {', '.join(map(repr, found))}")
