"""The loop that every kind of training runs: batches of all layers to the steps of all configurations, with what is
shown, logged and kept on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import torch
from tqdm.auto import tqdm

from pullback._util.memory import keep_freed_memory
from pullback.training.checkpoint import Checkpoints
from pullback.training.loggers import LoggingConfig, figures, open_loggers
from pullback.training.plan import buffer_bytes
from pullback.training.run import Run, Widths
from pullback.training.step import TrainingDiverged


def fit(
    runs: Sequence[Run],
    batches: Iterator[Any],
    *,
    verbose: bool = True,
    checkpoints: Checkpoints | None = None,
    checkpoint_every_tokens: int | None = None,
    logger: LoggingConfig | None = None,
) -> None:
    """Feed lists [x, y of the first layer, x, y of the next, ...] to all runs until `training_tokens` are used.

    Args:
        runs: of one configuration or of several, which say the same about tokens and batches.
        batches: with `checkpoints`, it has `state_dict` and `load_state_dict`.
        checkpoints: where the run's state is kept and found.
        checkpoint_every_tokens: tokens between two checkpoints; None for a tenth of the run.

    Raises:
        ValueError: there is no batch, or the checkpoint is of another run.
        TrainingDiverged: says which layer; no checkpoint is written of it.
    """
    config, logger = runs[0].config, logger or LoggingConfig()
    keep_freed_memory()
    reports, shared = runs[0].reports, runs[0].shared
    verbose = verbose and reports
    used = checkpoints.load(runs, batches) if checkpoints else 0
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
        directory = checkpoints.path if checkpoints else None
        loggers = open_loggers(logger, [run.config.to_dict() for run in runs], directory, used) if reports else []
        for each in loggers:
            stack.callback(each.close)
        while used < config.training_tokens:
            rows = _accumulated(batches, config.grad_acc_steps)
            if rows is None:
                break
            step_number = used // config.tokens_per_step
            for i, run in enumerate(runs):
                with _naming(i, runs):
                    run.step(rows, run.config.lr_at(step_number))
            used += len(rows[0])
            bar.update(len(rows[0]))
            done = used >= config.training_tokens
            if (verbose or loggers or shared) and (done or step_number % logger.log_every_n_steps == 0):
                found = figures(runs, step_number, used)
                bar.set_postfix_str(_summary(found, len(runs)))
                for each in loggers:
                    each.log(found, used)
            if checkpoints and (done or used - kept >= every):
                _check(runs)
                checkpoints.save(used, runs, batches)
                kept = used
        _check(runs)
        if used == 0:
            raise ValueError("nothing to train on: the source of tokens is empty, or every token is masked or BOS")
        if checkpoints and kept < used:
            checkpoints.save(used, runs, batches)
    if verbose and used < config.training_tokens:
        tqdm.write(f"the source of tokens ended after {used:,} of {config.training_tokens:,} tokens")


def _accumulated(batches: Iterator[Any], n: int) -> Any:
    """The rows of the next n batches, or of as many as there are; None where there are none."""
    found = list(islice(batches, n))
    if len(found) < 2:
        return found[0] if found else None
    return [torch.cat(columns) for columns in zip(*found, strict=True)]


def _check(runs: Sequence[Run]) -> None:
    for i, run in enumerate(runs):
        with _naming(i, runs):
            run.check()


@contextmanager
def _naming(i: int, runs: Sequence[Run]) -> Iterator[None]:
    """Says which of several runs diverged."""
    try:
        yield
    except TrainingDiverged as error:
        if len(runs) == 1:
            raise
        raise TrainingDiverged(f"run {i}, {error}", transcoder=error.transcoder) from None


def _summary(found: Mapping[str, float], n_runs: int) -> str:
    """Averages over layers, so that the line stays short for deep models."""
    front = "" if n_runs == 1 else "run_0/"
    dead = found[f"{front}sparsity/dead_features"]
    return f"fvu {found[f'{front}metrics/fvu']:.3f}, l0 {found[f'{front}metrics/l0']:.1f}, dead {dead:.0f}"


def announce(runs: Sequence[Run], widths: Widths, held_tokens: int) -> None:
    """Say what is about to be trained, and what memory it takes; `held_tokens` rows of every layer wait to be used."""
    if not runs[0].reports:
        return
    config = runs[0].config
    held = buffer_bytes(sum(sum(widths[layer]) for layer in runs[0].layers), held_tokens, config.store_dtype.itemsize)
    each = ", in each process" if runs[0].shared else ""
    features = " and ".join(f"{d_sae}" for d_sae in sorted({run.config.d_sae for run in runs}))
    tqdm.write(
        f"training {sum(run.n_dictionaries for run in runs)} transcoders with {features} features on "
        f"{config.training_tokens:,} tokens in {config.n_steps:,} steps; "
        f"memory about {(sum(run.memory for run in runs) + held) / 2**20:,.0f} MiB beside the model{each}"
    )
