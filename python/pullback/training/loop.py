"""The loop that every kind of training runs: batches of all layers to the steps of all configurations, with what is
shown, logged and kept on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from tqdm.auto import tqdm

from pullback.training.checkpoint import Checkpoints
from pullback.training.config import TrainConfig
from pullback.training.loggers import LoggingConfig, figures, open_loggers
from pullback.training.step import TrainingDiverged, TrainStep
from pullback.transcoders import ModelReading, TranscoderSet

Steps = dict[int, TrainStep]

COPIES_PER_WEIGHT = 3.25  # the weight, two moments of Adam, half an encoder in bfloat16


def new_steps(
    config: TrainConfig, widths: Mapping[int, tuple[int, int]], device: torch.device, readings: Mapping[int, Any]
) -> Steps:
    """Fresh steps, a layer each; widths {layer: (d_in, d_out)}."""
    return {
        layer: new_step(config, d_in, d_out, device, seed=config.seed + layer, reading=readings.get(layer))
        for layer, (d_in, d_out) in widths.items()
    }


def new_step(
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


def fit(
    runs: Sequence[Steps],
    configs: Sequence[TrainConfig],
    batches: Iterator[Any],
    *,
    verbose: bool = True,
    checkpoints: Checkpoints | None = None,
    checkpoint_every_tokens: int | None = None,
    logger: LoggingConfig | None = None,
) -> None:
    """Feed lists [x, y of the first layer, x, y of the next, ...] to the steps until `training_tokens` are used.

    Args:
        runs, configs: steps of all layers, and the settings, of each configuration. What they say about tokens and
            batches is the same.
        batches: with `checkpoints`, it has `state_dict` and `load_state_dict`.
        checkpoints: where the run's state is kept and found.
        checkpoint_every_tokens: tokens between two checkpoints; None for a tenth of the run.

    Raises:
        ValueError: there is no batch, or the checkpoint is of another run.
        TrainingDiverged: says which layer; no checkpoint is written of it.
    """
    config, logger = configs[0], logger or LoggingConfig()
    used = checkpoints.load(configs, runs, batches) if checkpoints else 0
    every = checkpoint_every_tokens or max(1, config.training_tokens // 10)
    kept = used
    if verbose and used:
        tqdm.write(f"going on after {used:,} tokens")
    bar = tqdm(
        total=config.training_tokens,
        initial=used,
        unit="tok",
        unit_scale=True,
        desc="training",
        disable=not verbose,
    )
    with ExitStack() as stack:
        stack.enter_context(bar)
        loggers = open_loggers(
            logger, [one.to_dict() for one in configs], checkpoints.path if checkpoints else None, used
        )
        for each in loggers:
            stack.callback(each.close)
        while used < config.training_tokens:
            rows = next(batches, None)
            if rows is None:
                break
            step_number = used // config.train_batch_size_tokens
            losses = [
                _one_step(steps, rows, own, step_number, _run_name(i, runs))
                for i, (steps, own) in enumerate(zip(runs, configs, strict=True))
            ]
            used += len(rows[0])
            bar.update(len(rows[0]))
            done = used >= config.training_tokens
            if (verbose or loggers) and (done or step_number % logger.log_every_n_steps == 0):
                found = figures(runs, losses, used)
                bar.set_postfix_str(_summary(found, len(runs)))
                for each in loggers:
                    each.log(found, used)
            if checkpoints and (done or used - kept >= every):
                _check(runs)
                checkpoints.save(used, configs, runs, batches)
                kept = used
        _check(runs)
        if used == 0:
            raise ValueError("nothing to train on: the source of tokens is empty, or every token is masked or BOS")
        if checkpoints and kept < used:
            checkpoints.save(used, configs, runs, batches)
    if verbose and used < config.training_tokens:
        tqdm.write(f"the source of tokens ended after {used:,} of {config.training_tokens:,} tokens")


def _one_step(
    steps: Steps, rows: Sequence[torch.Tensor], config: TrainConfig, number: int, run: str
) -> dict[int, torch.Tensor]:
    losses = {}
    for (layer, step), x, y in zip(steps.items(), rows[::2], rows[1::2], strict=True):
        step.lr = config.lr_at(number)
        with _naming(layer, step, run):
            losses[layer] = step(y if config.autoencodes else x, y)
    return losses


def _check(runs: Sequence[Steps]) -> None:
    """Raise what the last step on a GPU has not said yet."""
    for i, steps in enumerate(runs):
        for layer, step in steps.items():
            with _naming(layer, step, _run_name(i, runs)):
                step.check()


def _run_name(i: int, runs: Sequence[Steps]) -> str:
    return "" if len(runs) == 1 else f"run {i}, "


@contextmanager
def _naming(layer: int, step: TrainStep, run: str) -> Iterator[None]:
    """Says which layer diverged."""
    try:
        yield
    except TrainingDiverged as error:
        raise TrainingDiverged(f"{run}layer {layer}: {error}", transcoder=step.transcoder) from None


def _summary(found: Mapping[str, float], n_runs: int) -> str:
    """Averages over layers, so that the line stays short for deep models."""
    front = "" if n_runs == 1 else "run_0/"
    dead = found[f"{front}sparsity/dead_features"]
    return f"fvu {found[f'{front}metrics/fvu']:.3f}, l0 {found[f'{front}metrics/l0']:.1f}, dead {dead:.0f}"


def announce(configs: Sequence[TrainConfig], runs: Sequence[Steps], held_tokens: int) -> None:
    """Say what is about to be trained, and what memory it takes; `held_tokens` rows of every layer wait to be used."""
    every = [step.transcoder for steps in runs for step in steps.values()]
    weights = sum(weight.numel() * weight.element_size() for tc in every for weight in tc.parameters())
    held = sum(
        (step.transcoder.d_in + step.transcoder.d_out) * step.transcoder.W_enc.element_size() * held_tokens
        for step in runs[0].values()
    )
    config = configs[0]
    features = " and ".join(f"{d_sae}" for d_sae in sorted({one.d_sae for one in configs}))
    tqdm.write(
        f"training {len(every)} transcoders with {features} features on "
        f"{config.training_tokens:,} tokens in {config.n_steps:,} steps; "
        f"memory about {(COPIES_PER_WEIGHT * weights + held) / 2**20:,.0f} MiB beside the model"
    )


def finished(steps: Steps) -> TranscoderSet:
    """The transcoders as they are now."""
    return TranscoderSet({layer: step.transcoder for layer, step in steps.items()})
