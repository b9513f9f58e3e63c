"""`pullback demo`: a small model, from transcoders to an explanation that is tested."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pullback.commands.opening import command


def add(commands: Any) -> None:
    summary = "train transcoders of a small trained model, explain one answer, test the explanation"
    parser = command(commands, "demo", run, summary)
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder for graph.html and report.json")
    parser.add_argument("--shipped", action="store_true", help="use the shipped transcoders instead of training some")
    parser.add_argument("--city", default="dallas", help="the prompt's city")
    parser.add_argument("--source-city", default="oakland", help="the city whose state features are put in")
    parser.add_argument("--steps", type=int, default=None, help="training steps (default: about two minutes' worth)")
    parser.add_argument("--seed", type=int, default=0, help="seed of training and of the drawn pairs")


def run(args: argparse.Namespace) -> None:
    from pullback import demo

    if args.shipped and args.steps is not None:
        raise ValueError("--shipped transcoders are not trained: leave out --steps, or --shipped")
    steps = demo.TRAINING_STEPS if args.steps is None else args.steps
    demo.run(args.out, city=args.city, source_city=args.source_city, shipped=args.shipped, steps=steps, seed=args.seed)
