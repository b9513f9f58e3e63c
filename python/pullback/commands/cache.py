"""`pullback cache`: activations on disk."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pullback.commands import harvest
from pullback.commands.opening import command, open_model


def add(commands: Any) -> None:
    parser = command(commands, "cache", run, "write activations to disk, to train on them as often as wanted")
    harvest.add_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the cache; continued if it is begun")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order of prompts")


def run(args: argparse.Namespace) -> None:
    from pullback.training.command import run_cache

    run_cache(args, lambda: open_model(args.model))
