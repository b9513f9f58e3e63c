"""`pullback train`: transcoders for every layer of a model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pullback.commands import harvest, train_options
from pullback.commands.opening import command, open_model


def add(commands: Any) -> None:
    parser = command(commands, "train", run, "train transcoders for every layer of a model at once")
    harvest.add_arguments(parser)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the transcoders; of several runs, for run_0, run_1, ..."
    )
    parser.add_argument("--force", action="store_true", help="replace transcoders that are there already")
    parser.add_argument(
        "--cache", type=Path, default=None, help="folder of cached activations: used, or made of --data"
    )
    parser.add_argument("--checkpoint", type=Path, default=None, help="folder for checkpoints and log.jsonl")
    every = "tokens from one to the next (default: a tenth of the run)"
    parser.add_argument("--checkpoint-every-tokens", type=int, default=None, help=every)
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint, if there is one")
    parser.add_argument("--tensorboard", type=Path, default=None, help="folder for TensorBoard")
    parser.add_argument("--wandb", action="store_true", help="log to Weights & Biases")
    train_options.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from pullback.training.command import run_train

    _claim(args.out, args.force)
    grid = list(train_options.settings(args))
    run_train(args, lambda: open_model(args.model), grid, train_options.of_sparsify(args))


def _claim(out: Path, force: bool) -> None:
    """The folder a long run will write to: there, writable, and not somebody's set, before the run and not after."""
    if any((out / name).exists() for name in ("config.yaml", "runs.json")) and not force:
        raise ValueError(f"{out} holds transcoders already; give --out another folder, or --force to replace them")
    out.mkdir(parents=True, exist_ok=True)
