"""`pullback eval`: how well transcoders or autoencoders stand in for what they replace."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pullback.commands.opening import command, corpus, model_and_set, open_model, open_set

BATCH = 32
"""prompts of one forward pass"""


def add(commands: Any) -> None:
    summary = "measure transcoders or autoencoders: L0, FVU, dead share, CE recovered, KL"
    parser = command(commands, "eval", run, summary)
    model_and_set(parser)
    parser.add_argument(
        "--data", type=Path, required=True, help="prompts or documents (.txt, .jsonl), or token ids (.npy, .bin)"
    )
    corpus(parser)
    parser.add_argument("--compare", default=None, help="folder or hub id of another set, measured beside it")
    parser.add_argument("--per-layer", action="store_true", help="also replace each layer on its own: slower")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here as well")


def run(args: argparse.Namespace) -> None:
    from pullback._util.atomic import atomic_save
    from pullback.lens import as_lens
    from pullback.training import evaluate
    from pullback.training.command import read_tokens
    from pullback.training.source import token_batches
    from pullback.transcoders import load_transcoders

    tokens = read_tokens(args, args.data)
    lens = as_lens(open_model(args.model))
    report = evaluate(
        lens,
        open_set(args),
        token_batches(lens, tokens, batch_size=BATCH, context_size=args.context_size),
        compare=None if args.compare is None else {args.compare: load_transcoders(args.compare, lazy=args.lazy)},
        per_layer=args.per_layer,
        verbose=True,
    )
    print(report)
    if args.json is not None:
        atomic_save(args.json, json.dumps(report.to_dict(), indent=2))
