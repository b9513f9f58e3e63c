"""What the report measures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pullback.demo import answered
from pullback.training import TrainConfig, sweep
from pullback.zoo import tinymix
from pullback.zoo.tinymix import tasks, transcoders

K = (4, 8, 16, 32)
SEEDS = (0, 1, 2)
STEPS, TOKENS_PER_STEP = 1500, 512
CACHED_TOKENS = 262_144
TRAINED_ON, MEASURED_ON = 1, 99  # seeds of the prompts
EVALUATION_BATCHES = 12


def config(steps: int = STEPS) -> TrainConfig:
    """The shipped transcoders' settings, in smaller batches."""
    tokens = steps * TOKENS_PER_STEP
    return replace(transcoders.config(), training_tokens=tokens, train_batch_size_tokens=TOKENS_PER_STEP)


def transcoders_and_autoencoders(work: Path, seed: int, **smaller: Any) -> dict[str, Any]:
    """The sweep of one seed, TopK transcoders and autoencoders of the MLP outputs, in `work`, continued where it
    stopped; seeds may run at the same time once the first has made the cache.

    Measured where a task asks for an answer ("answers"), and on every token of fresh prompts ("every token"), of which
    most are announced by nothing, so that the model was not trained to guess them.
    """
    settings: dict[str, Any] = {"config": config(), "k": K, "cache_tokens": CACHED_TOKENS} | smaller
    return sweep(
        tinymix.load(),
        tasks.training_batches(TRAINED_ON, include_bos=True),
        work / f"seed{seed}",
        seeds=(seed,),
        cache=work / "cache",
        evaluation={
            "answers": answered(MEASURED_ON),
            "every token": list(tasks.training_batches(MEASURED_ON, EVALUATION_BATCHES)),
        },
        **settings,
    )
