"""`pullback features`: a feature pack of a set, from a corpus."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pullback.commands.opening import command, corpus, model_and_set, open_model, open_set


def add(commands: Any) -> None:
    summary = "write a card for every feature: where it is active, how strongly, and what it says"
    parser = command(commands, "features", run, summary)
    model_and_set(parser)
    add_arguments(parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", type=Path, required=True, help="prompts or documents (.txt, .jsonl), or token ids (.npy, .bin)")
    add("--out", type=Path, required=True, help="folder for index.json.gz and layer_{i}.bin")
    corpus(parser)
    add("--batch-size", type=int, default=32, help="contexts of one forward pass")
    add("--n-top", type=int, default=20, help="contexts shown, the strongest first")
    add("--n-quantiles", type=int, default=5, help="groups of further ones, by strength")
    add("--n-per-quantile", type=int, default=5, help="contexts in each")
    add("--window", type=int, nargs=2, default=[16, 8], metavar=("LEFT", "RIGHT"), help="tokens around the strongest")
    add("--n-logits", type=int, default=10, help="tokens that it says most, and least")
    add("--seed", type=int, default=0, help="of the contexts that are drawn")


def run(args: argparse.Namespace) -> None:
    """Read the corpus, write the pack; says what memory it takes before."""
    from pullback._util.amounts import amount
    from pullback.interpret.features import FeaturePack, pack_nbytes, write_feature_pack
    from pullback.training.command import read_tokens

    if args.out.is_file():
        raise ValueError(f"--out takes a folder, and {args.out} is a file")
    sets = open_set(args)
    left, right = args.window
    held = pack_nbytes(sets, args.n_top, args.n_quantiles * args.n_per_quantile, (left, right))
    print(f"examples of {sum(len(sets[i].b_enc) for i in sets.layers)} features take {amount(held, 'B')} of memory")
    write_feature_pack(
        open_model(args.model),
        sets,
        read_tokens(args, args.data),
        args.out,
        batch_size=args.batch_size,
        context_size=args.context_size,
        n_top=args.n_top,
        n_quantiles=args.n_quantiles,
        n_per_quantile=args.n_per_quantile,
        window=(left, right),
        n_logits=args.n_logits,
        seed=args.seed,
        verbose=True,
    )
    pack = FeaturePack(args.out)
    print(f"wrote {args.out}: {sum(map(pack.n_features, pack.layers))} cards of layers {pack.layers}")
