"""Training transcoders of all layers on one stream of tokens, or one dictionary on given activations."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pullback.training.checkpoint import Checkpoints
from pullback.training.config import TrainConfig
from pullback.training.harvest import Harvest, Harvester
from pullback.training.loggers import LoggingConfig
from pullback.training.loop import announce, fit
from pullback.training.masks import Excluded
from pullback.training.run import PerLayerRun, Run, new_step
from pullback.training.runs import new_run
from pullback.training.source import Tokens, is_packed, token_batches
from pullback.training.step import TrainingDiverged
from pullback.transcoders import CrossLayerTranscoder, LayeredDictionary, Transcoder, TranscoderSet

PREFETCH_ON_GPU = 2
MIXING = 0x6D6978  # rows are mixed by other random numbers than prompts are ordered by


def train(
    model: Any,
    tokens: Tokens,
    config: TrainConfig | None = None,
    *,
    mask: Tensor | None = None,
    verbose: bool = True,
    output_path: str | os.PathLike[str] | None = None,
    checkpoint_path: str | os.PathLike[str] | None = None,
    checkpoint_every_tokens: int | None = None,
    keep_checkpoints: int = 2,
    resume: bool = False,
    logger: LoggingConfig | None = None,
) -> TranscoderSet | CrossLayerTranscoder:
    """Train one transcoder a layer; every forward pass of the model serves all layers.

    Args:
        model: a TransformerLens model, or a `Lens` on one.
        tokens: prompts: a tensor (n_prompts, T), a list of strings or of token lists. Or batches: an iterable of
            tensors (B, T) or of pairs (tokens, mask), or a function that returns one batch, or an iterator of batches,
            at every call. Prompts, lists and functions are used again until `config.training_tokens` is reached; an
            iterator ends the run where it ends.
        config: see TrainConfig.
        mask: Bool[Tensor, 'n_prompts T'], true where a token of a tensor of prompts counts.
        verbose: print a memory estimate and show a progress bar.
        output_path: the set is saved here at the end; of a run that is interrupted or diverges, what exists is saved
            to this path with ".unfinished" behind it.
        checkpoint_path: folder for checkpoints, and for `log.jsonl`.
        checkpoint_every_tokens: tokens between two checkpoints; None for a tenth of the run.
        keep_checkpoints: how many of the newest to keep.
        resume: go on from the newest checkpoint, if there is one: with the tokens and settings that the run began with,
            the weights will be those of a run that was never stopped, to the bit.
        logger: see LoggingConfig.

    Returns:
        The trained set; each transcoder knows its hooks and how the model was read.

    Raises:
        ValueError: tokens that cannot be read, nothing to train on, or checkpoints of another run.
        TrainingDiverged: NaN or infinity in activations, loss or gradient; its `sets` hold the last good weights, and
            the last checkpoint stays.
        KeyboardInterrupt: after what exists was saved, if there is an `output_path`.
    """
    from pullback.lens import as_lens

    config = checked_config(config)
    lens = as_lens(model)
    layers = chosen_layers(lens, config)
    device = torch.device(config.device) if config.device else lens.device
    checkpoints = opened(checkpoint_path, keep_checkpoints, resume)
    widths = dict.fromkeys(layers, (lens.d_model, lens.d_model))
    run = new_run(config, widths, device, {layer: lens.reading(layer) for layer in layers})
    like = torch.empty(0, dtype=config.torch_dtype, device=device)
    excluded = Excluded.chosen(
        lens,
        exclude_bos=config.exclude_bos,
        bos_token_id=config.bos_token_id,
        exclude_padding=config.exclude_padding,
        exclude_special_tokens=config.exclude_special_tokens,
        packed=is_packed(tokens),
    )
    held_tokens = config.train_batch_size_tokens * config.n_batches_in_buffer
    source = Harvest(
        Harvester(lens, layers, config.hook_name, config.hook_name_out, excluded, like),
        lambda: token_batches(
            lens,
            tokens,
            batch_size=config.store_batch_size_prompts,
            mask=mask,
            context_size=config.context_size,
            generator=torch.Generator().manual_seed(config.seed),
            repeat=True,
        ),
        batch_size=config.train_batch_size_tokens,
        capacity=held_tokens,
        generator=torch.Generator().manual_seed(config.seed ^ MIXING),
        prefetch=(PREFETCH_ON_GPU if like.is_cuda else 0) if config.prefetch is None else config.prefetch,
    )
    if verbose:
        announce([run], widths, held_tokens)
    with closing(source), kept_if_stopped([run], [output_path]):
        fit(
            [run],
            source,
            verbose=verbose,
            checkpoints=checkpoints,
            checkpoint_every_tokens=checkpoint_every_tokens,
            logger=logger,
        )
    sets = run.dictionary()
    if output_path is not None:
        sets.save(output_path)
    return sets


def train_on_activations(
    x: Tensor | Iterable[tuple[Tensor, Tensor]],
    y: Tensor | None = None,
    config: TrainConfig | None = None,
    *,
    verbose: bool = True,
) -> Transcoder:
    """Train one dictionary on given activations; needs no model and no TransformerLens.

    Args:
        x: inputs Float[Tensor, '... d_in'], reshuffled and repeated until `config.training_tokens`; or an iterable of
            batches (x, y), taken as they come, repeated if it can be.
        y: targets Float[Tensor, '... d_out'] for a tensor x; None makes an autoencoder of x.
        config: see TrainConfig; what it says about prompts, layers and BOS has no meaning here.
        verbose: show a progress bar.

    Raises:
        ValueError: shapes that do not fit, or no data.
        TrainingDiverged: NaN or infinity in data, loss or gradient; its `transcoder` holds the last good weights.
    """
    config = checked_config(config)
    if isinstance(x, Tensor):
        batches = _shuffled_batches(x, x if y is None else y, config)
    elif y is not None:
        raise ValueError("train_on_activations: give two tensors x and y, or one iterable of pairs (x, y)")
    else:
        batches = _repeated(x)
    first = next(batches, None)
    if first is None:
        raise ValueError("train_on_activations: no batch to train on; give at least one pair (x, y)")
    device = torch.device(config.device) if config.device else first[0].device
    step = new_step(config, first[0].shape[-1], first[1].shape[-1], device, seed=config.seed, reading=None)
    fit([PerLayerRun(config, {0: step})], chain([first], batches), verbose=verbose)
    return step.transcoder


def checked_config(config: TrainConfig | None) -> TrainConfig:
    """The settings, or the default ones. Raises ValueError for what is no TrainConfig."""
    config = config or TrainConfig()
    if not isinstance(config, TrainConfig):
        raise ValueError(
            f"train: config must be a TrainConfig, got {type(config).__name__}: write TrainConfig(k=16, ...)"
        )
    return config


def chosen_layers(lens: Any, config: TrainConfig) -> list[int]:
    """The layers to train, ascending. Raises ValueError for layers that the model does not have."""
    layers = list(range(lens.n_layers)) if config.layers is None else sorted(set(config.layers))
    wrong = [layer for layer in layers if not 0 <= layer < lens.n_layers]
    if wrong or not layers:
        raise ValueError(
            f"TrainConfig: layers must be among 0..{lens.n_layers - 1} of this model, got {list(config.layers or [])}"
        )
    return layers


def opened(path: str | os.PathLike[str] | None, keep: int, resume: bool) -> Checkpoints | None:
    """The checkpoints of a run, if it has a folder for them. Raises ValueError where it cannot be resumed at all."""
    if path is not None:
        return Checkpoints(path, keep=keep, resume=resume)
    if resume:
        raise ValueError("resume=True needs a checkpoint_path to go on from")
    return None


@contextmanager
def kept_if_stopped(runs: list[Run], output_paths: list[str | os.PathLike[str] | None]) -> Iterator[None]:
    """Whatever stops the training inside, the transcoders as they are then are not lost."""
    try:
        yield
    except TrainingDiverged as error:
        error.sets = _saved_unfinished(runs, output_paths)
        raise
    except KeyboardInterrupt:
        _saved_unfinished(runs, output_paths)
        raise


def _saved_unfinished(runs: list[Run], paths: list[str | os.PathLike[str] | None]) -> LayeredDictionary:
    """Beside the path, not in its place: a finished set may stand there. Returns the first run's set."""
    sets = [run.dictionary() for run in runs]
    for one, path in zip(sets, paths, strict=True):
        if path is not None:
            beside = f"{os.fspath(path).rstrip(os.sep)}.unfinished"
            one.save(beside)
            tqdm.write(f"training stopped early; the transcoders as they are now were saved to {beside}")
    return sets[0]


def _shuffled_batches(x: Tensor, y: Tensor, config: TrainConfig) -> Iterator[tuple[Tensor, Tensor]]:
    if x.ndim < 2 or y.ndim < 2 or x.shape[:-1] != y.shape[:-1] or x.numel() == 0:
        raise ValueError(
            "train_on_activations: x and y must be [..., d] with the same leading sizes and at least "
            f"one row, got {list(x.shape)} and {list(y.shape)}"
        )
    x, y = x.flatten(0, -2), y.flatten(0, -2)
    generator = torch.Generator().manual_seed(config.seed)
    while True:
        for rows in torch.randperm(len(x), generator=generator).to(x.device).split(config.train_batch_size_tokens):
            yield x[rows], y[rows]


def _repeated(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    if iter(batches) is batches:
        yield from batches
        return
    for once in repeat(batches):
        empty = True
        for batch in once:
            empty = False
            yield batch
        if empty:
            return
