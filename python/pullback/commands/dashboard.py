"""`pullback dashboard`: features of a layer on a page, with or without the examples of a corpus."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pullback.commands.opening import command, corpus, model_and_set, open_model, open_set


def add(commands: Any) -> None:
    summary = "show features on one page: examples, what they say, what they read, what they do on prompts"
    parser = command(commands, "dashboard", run, summary)
    model_and_set(parser)
    add_arguments(parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--layer", type=int, required=True, help="layer of the features")
    add("--features", type=int, nargs="+", default=None, help="their ids (default: some that are alive, by lot)")
    add("--out", type=Path, required=True, help="a .html page, or .json")
    add("--data", type=Path, default=None, help="prompts or documents (.txt, .jsonl), or token ids (.npy, .bin)")
    add("--pack", type=Path, default=None, help="cards of `pullback features`, instead of --data")
    corpus(parser)
    add("--batch-size", type=int, default=32, help="contexts of one forward pass")
    add("--prompts", nargs="+", default=[], metavar="PROMPT", help="show activations on these too")
    add("--blind", action="store_true", help="leave out the examples of the corpus")
    add("--n-random", type=int, default=10, help="features by lot")
    add("--min-density", type=float, default=1e-4, help="share of tokens that such a feature is active on at least")
    add("--bands", choices=("uniform", "quantile"), default="uniform", help="of equal width, or of equally many")
    add("--n-bands", type=int, default=5, help="groups of examples by strength")
    add("--n-per-band", type=int, default=5, help="contexts in each")
    add("--n-top", type=int, default=20, help="contexts shown, the strongest first")
    add("--window", type=int, nargs=2, default=[16, 8], metavar=("LEFT", "RIGHT"), help="tokens around the strongest")
    add("--k", type=int, default=10, help="tokens and other features listed")
    add("--seed", type=int, default=0, help="of what is drawn")


def run(args: argparse.Namespace) -> None:
    """Write the page or the JSON; says of which features."""
    from pullback.interpret import BlindStudy, dashboard
    from pullback.training.command import read_tokens

    if args.out.suffix not in (".html", ".json"):
        raise ValueError(f"--out must end in .html or .json, got {args.out}")
    make = BlindStudy if args.blind else dashboard
    made = make(
        open_model(args.model),
        open_set(args),
        args.layer,
        args.features,
        None if args.data is None else read_tokens(args, args.data),
        pack=args.pack,
        prompts=args.prompts,
        n_random=args.n_random,
        min_density=args.min_density,
        bands=args.bands,
        n_bands=args.n_bands,
        n_per_band=args.n_per_band,
        n_top=args.n_top,
        window=tuple(args.window),
        k=args.k,
        context_size=args.context_size,
        batch_size=args.batch_size,
        seed=args.seed,
        verbose=True,
    )
    if args.out.suffix == ".html":
        made.to_html(args.out)
    else:
        made.to_json(args.out)
    ids = [part["feature"] for part in made.to_dict()["features"]]
    print(f"wrote {args.out}: features {' '.join(map(str, ids))} of layer {args.layer}")
