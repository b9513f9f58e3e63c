"""`pullback sweep`: a grid of transcoders and autoencoders at equal L0."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pullback.commands import harvest, train_options
from pullback.commands.opening import command, open_model

SWEPT = ("topk", "batchtopk", "standard", "jumprelu")


def add(commands: Any) -> None:
    summary = "train a grid of transcoders and autoencoders on the same activations, and compare them at equal L0"
    parser = command(commands, "sweep", run, summary)
    harvest.add_arguments(parser)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for sweep.json, sweep.html, sweep.png and the sets; continued if it is begun",
    )
    parser.add_argument(
        "--eval-data", type=Path, default=None, help="file of tokens to measure on (default: those of --data)"
    )
    parser.add_argument("--eval-prompts", type=int, default=256, help="measure on so many of its prompts")
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=("transcoder", "sae"),
        default=["transcoder", "sae"],
        help="transcoders, autoencoders of what they write, or both",
    )
    parser.add_argument("--architectures", nargs="+", choices=SWEPT, default=["topk"], help="sparsity rules")
    parser.add_argument("--k", type=int, nargs="+", default=[], help="topk, batchtopk: features active per token")
    parser.add_argument("--l1-coefficient", type=float, nargs="+", default=[], help="standard: weights of its penalty")
    parser.add_argument("--l0-coefficient", type=float, nargs="+", default=[], help="jumprelu: weights of its penalty")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of weights and the order of batches")
    parser.add_argument("--per-layer", action="store_true", help="also measure each layer replaced on its own")
    parser.add_argument("--at-once", type=int, default=8, help="arms that train together: memory")
    train_options.add_arguments(parser, train_options.SIZES)


def run(args: argparse.Namespace) -> None:
    from pullback.training.command import run_sweep

    run_sweep(args, lambda: open_model(args.model))
