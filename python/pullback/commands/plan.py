"""`pullback plan`: what a training run would take."""

from __future__ import annotations

import argparse
from typing import Any

from pullback.commands.opening import command


def add(commands: Any) -> None:
    parser = command(commands, "plan", run, "say what memory, arithmetic and network a training run would take")
    parser.add_argument("model", nargs="?", help="gpt2-small, gemma-2-2b, llama-3.1-8b or llama-3.1-70b; or give sizes")
    parser.add_argument("--n-layers", type=int, default=None, help="of another model")
    parser.add_argument("--d-model", type=int, default=None, help="of another model")
    parser.add_argument("--parameters", type=float, default=None, help="of another model, without embeddings")
    parser.add_argument("--k", type=int, default=32, help="features active per token")
    parser.add_argument("--cross-layer", action="store_true", help="features write to all later layers")
    parser.add_argument("--processes", type=int, default=None, help="as many GPUs (default: 1, or those of a 4x2)")
    divisions = "layers, features, data, or 4x2 (default: layers if there are enough, else features)"
    parser.add_argument("--parallel", default=None, help=divisions)
    parser.add_argument("--d-sae", type=int, default=1024, help="features per layer")
    parser.add_argument("--training-tokens", type=int, default=1_000_000, help="tokens to train on")
    parser.add_argument("--train-batch-size-tokens", type=int, default=1024, help="tokens per step")


def run(args: argparse.Namespace) -> None:
    from pullback.training.command import run_plan

    run_plan(args)
