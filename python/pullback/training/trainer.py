"""Training transcoders of all layers on one stream of tokens, or one dictionary on given activations."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pullback.training.config import TrainConfig
from pullback.training.source import Tokens, activation_rows, bos_id, mixed, token_batches
from pullback.training.step import TrainingDiverged, TrainStep
from pullback.transcoders import ModelReading, Transcoder, TranscoderSet

COPIES_PER_WEIGHT = 3.25  # the weight, two moments of Adam, half an encoder in bfloat16
REPORT_EVERY = 20


def train(
    model: Any,
    tokens: Tokens,
    config: TrainConfig | None = None,
    *,
    mask: Tensor | None = None,
    verbose: bool = True,
    output_path: str | os.PathLike[str] | None = None,
) -> TranscoderSet:
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

    Returns:
        The trained set; each transcoder knows its hooks and how the model was read.

    Raises:
        ValueError: tokens that cannot be read, or nothing to train on.
        TrainingDiverged: NaN or infinity in activations, loss or gradient; its `sets` hold the last good weights.
        KeyboardInterrupt: after what exists was saved, if there is an `output_path`.
    """
    from pullback.lens import as_lens

    config = config or TrainConfig()
    if not isinstance(config, TrainConfig):
        raise ValueError(
            f"train: config must be a TrainConfig, got {type(config).__name__}: write TrainConfig(k=16, ...)"
        )
    lens = as_lens(model)
    layers = list(range(lens.n_layers)) if config.layers is None else sorted(set(config.layers))
    wrong = [layer for layer in layers if not 0 <= layer < lens.n_layers]
    if wrong or not layers:
        raise ValueError(
            f"TrainConfig: layers must be among 0..{lens.n_layers - 1} of this model, got {list(config.layers or [])}"
        )
    device = torch.device(config.device) if config.device else lens.device
    steps = {
        layer: _new_step(
            config, lens.d_model, lens.d_model, device, seed=config.seed + layer, reading=lens.reading(layer)
        )
        for layer in layers
    }
    order = torch.Generator().manual_seed(config.seed)
    prompts = token_batches(
        lens,
        tokens,
        batch_size=config.store_batch_size_prompts,
        mask=mask,
        context_size=config.context_size,
        generator=order,
        repeat=True,
    )
    like = steps[layers[0]].transcoder.W_enc
    bos = bos_id(lens, config.bos_token_id) if config.exclude_bos else None
    rows = activation_rows(lens, prompts, layers, config.hook_name, config.hook_name_out, bos, like)
    batch = config.train_batch_size_tokens
    if verbose:
        _announce(config, steps)
    try:
        _fit(steps, mixed(rows, batch, batch * config.n_batches_in_buffer, order), config, verbose)
    except TrainingDiverged as error:
        error.sets = _finished(steps)
        _save_unfinished(error.sets, output_path)
        raise
    except KeyboardInterrupt:
        _save_unfinished(_finished(steps), output_path)
        raise
    sets = _finished(steps)
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
    config = config or TrainConfig()
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
    step = _new_step(config, first[0].shape[-1], first[1].shape[-1], device, seed=config.seed, reading=None)
    _fit({0: step}, chain([first], batches), config, verbose)
    return step.transcoder


def _new_step(
    config: TrainConfig, d_in: int, d_out: int, device: torch.device, *, seed: int, reading: ModelReading | None
) -> TrainStep:
    return TrainStep(
        d_in,
        d_out,
        config.d_sae,
        activation=config.trained_activation,
        lr=config.lr,
        device=device,
        dtype=config.torch_dtype,
        betas=(config.adam_beta1, config.adam_beta2),
        optimizer=config.optimizer,
        decoder_norm=config.decoder_norm,
        max_grad_norm=config.max_grad_norm,
        auxk_alpha=config.auxk_alpha,
        auxk_k=config.auxk_k,
        dead_feature_window=config.dead_after,
        skip_connection=config.skip_connection,
        hook_in=config.hook_name,
        hook_out=config.hook_name_out,
        reading=reading,
        seed=seed,
        recipe=config,
    )


def _fit(steps: dict[int, TrainStep], batches: Iterable[Any], config: TrainConfig, verbose: bool) -> None:
    """Feed lists [x, y of the first layer, x, y of the next, ...] to the steps until `training_tokens` are used."""
    used = 0
    with tqdm(total=config.training_tokens, unit="tok", unit_scale=True, desc="training", disable=not verbose) as bar:
        for count, rows in enumerate(batches):
            lr = config.lr_at(used // config.train_batch_size_tokens)
            for i, (layer, step) in enumerate(steps.items()):
                step.lr = lr
                with _naming(layer, step):
                    step(rows[2 * i], rows[2 * i + 1])
            used += len(rows[0])
            bar.update(len(rows[0]))
            done = used >= config.training_tokens
            # Reading the figures waits for the device, so not at every step.
            if verbose and (done or count % REPORT_EVERY == 0):
                bar.set_postfix_str(_postfix(steps))
            if done:
                break
    for layer, step in steps.items():
        with _naming(layer, step):
            step.check()
    if used == 0:
        raise ValueError("nothing to train on: the source of tokens is empty, or every token is masked or BOS")
    if verbose and used < config.training_tokens:
        tqdm.write(f"the source of tokens ended after {used:,} of {config.training_tokens:,} tokens")


@contextmanager
def _naming(layer: int, step: TrainStep) -> Iterator[None]:
    """Says which layer diverged."""
    try:
        yield
    except TrainingDiverged as error:
        raise TrainingDiverged(f"layer {layer}: {error}", transcoder=step.transcoder) from None


def _postfix(steps: dict[int, TrainStep]) -> str:
    """Averages over layers, so that the line stays short for deep models."""
    stats = [step.stats for step in steps.values() if step.stats is not None]
    fvu, l0, dead = (
        math.fsum(float(value) for value in column) / len(stats) for column in list(zip(*stats, strict=True))[:3]
    )
    return f"fvu {fvu:.3f}, l0 {l0:.1f}, dead {dead:.1%}"


def _announce(config: TrainConfig, steps: dict[int, TrainStep]) -> None:
    weights = sum(
        weight.numel() * weight.element_size() for step in steps.values() for weight in step.transcoder.parameters()
    )
    tc = next(iter(steps.values())).transcoder
    buffered = (
        (tc.d_in + tc.d_out)
        * tc.W_enc.element_size()
        * config.train_batch_size_tokens
        * config.n_batches_in_buffer
        * len(steps)
    )
    tqdm.write(
        f"training {len(steps)} transcoders with {config.d_sae} features on "
        f"{config.training_tokens:,} tokens in {config.n_steps:,} steps; "
        f"memory about {(COPIES_PER_WEIGHT * weights + 2 * buffered) / 2**20:,.0f} MiB beside the model"
    )


def _finished(steps: dict[int, TrainStep]) -> TranscoderSet:
    return TranscoderSet({layer: step.transcoder for layer, step in steps.items()})


def _save_unfinished(sets: TranscoderSet, path: str | os.PathLike[str] | None) -> None:
    """Beside `path`, not in its place: a finished set may stand there."""
    if path is not None:
        beside = f"{os.fspath(path).rstrip(os.sep)}.unfinished"
        sets.save(beside)
        tqdm.write(f"training stopped early; the transcoders as they are now were saved to {beside}")


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
