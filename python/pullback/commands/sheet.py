"""`pullback sheet`: random features of two dictionaries on one page, to be rated blind, and what the ratings say."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pullback.commands.opening import MODEL_HELP, command, corpus, open_model


def add(commands: Any) -> None:
    summary = "have features of two dictionaries rated on one page, without knowing which is whose"
    add_arguments(command(commands, "sheet", run, summary))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    make = actions.add_parser("make", help="write the page and the key", formatter_class=parser.formatter_class)
    add = make.add_argument
    add("model", help=MODEL_HELP)
    add(
        "--arm",
        action="append",
        nargs=2,
        required=True,
        metavar=("NAME", "SET"),
        help="a name, and the folder or hub id of a set; give two",
    )
    add("--layer", type=int, required=True, help="layer of the features")
    add("--data", type=Path, required=True, help="prompts or documents (.txt, .jsonl), or token ids (.npy, .bin)")
    add("--out", type=Path, required=True, help="the page, .html, for who rates")
    add("--key", type=Path, required=True, help="the key, .json, for who scores")
    add("--n", type=int, default=50, help="features of each arm")
    add("--min-density", type=float, default=1e-4, help="share of tokens that a feature is active on at least")
    corpus(make)
    add("--batch-size", type=int, default=32, help="contexts of one forward pass")
    add("--seed", type=int, default=0, help="of what is drawn")
    score = actions.add_parser("score", help="count ratings by arm", formatter_class=parser.formatter_class)
    score.add_argument("ratings", type=Path, help="the file that the page saved")
    score.add_argument("key", type=Path, help="the key of that page")
    score.add_argument("--json", type=Path, default=None, help="write the figures here as well")


def run(args: argparse.Namespace) -> None:
    """Make a sheet, or score one."""
    (_make if args.action == "make" else _score)(args)


def _make(args: argparse.Namespace) -> None:
    from pullback.interpret import make_sheet
    from pullback.training.command import read_tokens
    from pullback.transcoders import load_transcoders

    key = make_sheet(
        open_model(args.model),
        {name: load_transcoders(where) for name, where in args.arm},
        args.layer,
        read_tokens(args, args.data),
        args.out,
        args.key,
        n=args.n,
        min_density=args.min_density,
        context_size=args.context_size,
        batch_size=args.batch_size,
        seed=args.seed,
        verbose=True,
    )
    live = ", ".join(f"{name} has {about['live']} live features" for name, about in key["arms"].items())
    print(f"wrote {args.out}, to rate, and {args.key}, to keep: {len(key['items'])} features; {live}")


def _score(args: argparse.Namespace) -> None:
    from pullback._util.atomic import atomic_save
    from pullback.interpret import score_sheet

    score = score_sheet(args.ratings, args.key)
    print(score)
    if args.json is not None:
        atomic_save(args.json, json.dumps(score.to_dict(), indent=1) + "\n")
