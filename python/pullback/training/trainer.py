"""Training transcoders of all layers on one stream of tokens, or one dictionary on given activations."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import chain, repeat
from typing import Any, overload

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pullback.training.checkpoint import Checkpoints
from pullback.training.config import TrainConfig
from pullback.training.harvest import chosen_layers
from pullback.training.loggers import LoggingConfig
from pullback.training.loop import announce, fit
from pullback.training.masks import Excluded
from pullback.training.run import PerLayerRun, Run, Trained, new_step
from pullback.training.several import (
    SHARED,
    SHARED_READING,
    OutputPath,
    finished,
    given_configs,
    hook_read,
    output_paths,
)
from pullback.training.source import Batch, Tokens, is_packed, token_batches
from pullback.training.step import TrainingDiverged
from pullback.training.team import Team, meeting
from pullback.transcoders import LayeredDictionary, Transcoder

PREFETCH_ON_GPU = 2
MIXING = 0x6D6978  # rows are mixed by other random numbers than prompts are ordered by


@overload
def train(
    model: Any, tokens: Tokens, config: TrainConfig | None = None, *, configs: None = None, **options: Any
) -> Trained: ...


@overload
def train(
    model: Any, tokens: Tokens, config: None = None, *, configs: Sequence[TrainConfig], **options: Any
) -> list[Trained]: ...


def train(  # pyright: ignore[reportInconsistentOverload]  (the options are spelled out here only)
    model: Any,
    tokens: Tokens,
    config: TrainConfig | None = None,
    *,
    configs: Sequence[TrainConfig] | None = None,
    mask: Tensor | None = None,
    verbose: bool = True,
    output_path: str | os.PathLike[str] | None = None,
    checkpoint_path: str | os.PathLike[str] | None = None,
    checkpoint_every_tokens: int | None = None,
    keep_checkpoints: int = 2,
    resume: bool = False,
    logger: LoggingConfig | None = None,
) -> Trained | list[Trained]:
    """Train one transcoder a layer; every forward pass of the model serves all layers.

    Args:
        model: a TransformerLens model, or a `Lens` on one.
        tokens: prompts: a tensor (n_prompts, T), a list of strings or of token lists. Or batches: an iterable of
            tensors (B, T) or of pairs (tokens, mask), or a function that returns one batch, or an iterator of batches,
            at every call. Prompts, lists and functions are used again until `config.training_tokens` is reached; an
            iterator ends the run where it ends.
        config: see TrainConfig.
        configs: instead of one: several k, seeds, widths, rates or architectures, each on the same batches, for which
            the model runs once. They must agree on what the model is run on and what is read of it; the first one's
            seed orders the batches, and each ends with the weights that it would have reached alone in that order. A
            transcoder and an autoencoder of its targets may be trained together.
        mask: Bool[Tensor, 'n_prompts T'], true where a token of a tensor of prompts counts.
        verbose: print a memory estimate and show a progress bar.
        output_path: the set is saved here at the end; of several, to `run_0`, `run_1`, ... inside, with a `runs.json`
            that says which is which. Of a run that is interrupted or diverges, what exists is saved
            to this path with ".unfinished" behind it.
        checkpoint_path: folder for checkpoints, and for `log.jsonl`.
        checkpoint_every_tokens: tokens between two checkpoints; None for a tenth of the run.
        keep_checkpoints: how many of the newest to keep.
        resume: go on from the newest checkpoint, if there is one: with the tokens and settings that the run began with,
            the weights will be those of a run that was never stopped, to the bit.
        logger: see LoggingConfig.

    Returns:
        The trained set, or a list of one for each of `configs`; each transcoder knows its hooks and how the model was
        read.

    Raises:
        ValueError: tokens that cannot be read, nothing to train on, checkpoints of another run, or configurations that
            do not agree.
        TrainingDiverged: NaN or infinity in activations, loss or gradient; its `sets` hold the last good weights, and
            the last checkpoint stays.
        KeyboardInterrupt: after what exists was saved, if there is an `output_path`.
    """
    from pullback.lens import as_lens

    every = given_configs("train", config, configs, (*SHARED, *SHARED_READING))
    config = every[0]
    lens = as_lens(model)
    layers = chosen_layers(lens, config.layers)
    device = torch.device(config.device) if config.device else lens.device
    widths = dict.fromkeys(layers, (lens.d_model, lens.d_model))
    readings = {layer: lens.reading(layer) for layer in layers}
    like = torch.empty(0, dtype=config.store_dtype, device=device)
    excluded = Excluded.chosen(
        lens,
        exclude_bos=config.exclude_bos,
        bos_token_id=config.bos_token_id,
        exclude_padding=config.exclude_padding,
        exclude_special_tokens=config.exclude_special_tokens,
        packed=is_packed(tokens),
    )
    held_tokens = config.train_batch_size_tokens * config.n_batches_in_buffer

    def batches() -> Iterator[Batch]:
        return token_batches(
            lens,
            tokens,
            batch_size=config.store_batch_size_prompts,
            mask=mask,
            context_size=config.context_size,
            generator=torch.Generator().manual_seed(config.seed),
            repeat=True,
        )

    agreed = {"output_path": output_path, "checkpoint_path": checkpoint_path, "every": checkpoint_every_tokens}
    with meeting(every, layers, device, **agreed, resume=resume, logger=logger) as team:
        checkpoints = opened(team, checkpoint_path, keep_checkpoints, resume, checkpoint_every_tokens)
        runs = [team.run(one, widths, device, readings) for one in every]
        source = team.harvest(
            (lens.unhooked(), layers, hook_read(every), config.hook_name_out, excluded, like, config.autocast_lm),
            batches,
            batch_size=config.train_batch_size_tokens,
            capacity=held_tokens,
            generator=torch.Generator().manual_seed(config.seed ^ MIXING),
            prefetch=(PREFETCH_ON_GPU if like.is_cuda else 0) if config.prefetch is None else config.prefetch,
        )
        if verbose:
            announce(runs, widths, held_tokens)
        with closing(source), kept_if_stopped(runs, output_paths(output_path, configs)):
            fit(
                runs,
                source,
                verbose=verbose,
                checkpoints=checkpoints,
                checkpoint_every_tokens=checkpoint_every_tokens,
                logger=logger,
            )
        sets = finished(runs, output_path, configs)
        return sets[0] if configs is None else sets


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
    (config,) = given_configs("train_on_activations", config, None, ())
    if isinstance(x, Tensor):
        batches = _shuffled_batches(x, x if y is None else y, config)
    elif y is not None:
        raise ValueError("train_on_activations: give two tensors x and y, or one iterable of pairs (x, y)")
    else:
        batches = _repeated(x)
    first = next(batches, None)
    if first is None:
        raise ValueError("train_on_activations: no batch to train on; give at least one pair (x, y)")
    config = config.sized(first[0].shape[-1])
    device = torch.device(config.device) if config.device else first[0].device
    step = new_step(config, first[0].shape[-1], first[1].shape[-1], device, seed=config.seed, reading=None)
    run = PerLayerRun(config, {0: step})
    fit([run], chain([first], batches), verbose=verbose)
    return run.transcoder(0)


def opened(
    team: Team, path: str | os.PathLike[str] | None, keep: int, resume: bool, every: int | None
) -> Checkpoints | None:
    """The checkpoints of a run, if it has a folder for them. Raises ValueError where there is none and should be."""
    if path is not None:
        return team.checkpoints(path, keep=keep, resume=resume)
    if resume:
        raise ValueError("resume=True needs a checkpoint_path to go on from")
    if every is not None:
        raise ValueError("checkpoint_every_tokens needs a checkpoint_path, the folder that checkpoints go into")
    return None


@contextmanager
def kept_if_stopped(runs: list[Run], output_paths: list[OutputPath]) -> Iterator[None]:
    """Whatever stops the training inside, the transcoders as they are then are not lost."""
    try:
        yield
    except TrainingDiverged as error:
        error.sets = _saved_unfinished(runs, output_paths)
        raise
    except KeyboardInterrupt:
        _saved_unfinished(runs, output_paths)
        raise


def _saved_unfinished(runs: list[Run], paths: list[OutputPath]) -> LayeredDictionary:
    """Beside the path, not in its place: a finished set may stand there. Returns the first run's set."""
    sets = []
    for run, path in zip(runs, paths, strict=True):
        beside = None if path is None else f"{os.fspath(path).rstrip(os.sep)}.unfinished"
        sets.append(run.saved(beside))
        if beside is not None and run.reports:
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
