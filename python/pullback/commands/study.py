"""`pullback study`: a behaviour of a model, from prompts to a page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pullback.commands.opening import MODEL_HELP, attention_saes, command, open_model, open_saes, open_set

NAMES = ("greater-than", "ioi", "induction", "brackets")
ABLATIONS, ERRORS = ("zero", "mean"), ("nodes", "kept", "dropped")


def add(commands: Any) -> None:
    summary = "study a behaviour: what carries it, and whether ablating that removes it"
    add_arguments(command(commands, "study", run, summary))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", choices=NAMES, help="what is studied")
    add("model", nargs="?", default="tiny-mix", help=MODEL_HELP)
    add("--transcoders", default=None, help="folder or hub id of a set (default: the zoo's own)")
    add("--lazy", action="store_true", help="leave the weights of --transcoders in their files")
    attention_saes(parser)
    add("--out", type=Path, default=Path("study-out"), help="folder for the page and its JSON")
    add("--n", type=int, default=64, help="prompts that are tested")
    add("--examples", type=int, default=2, help="prompts whose circuit is found")
    add("--draws", type=int, default=20, help="draws of random features")
    add("--seed", type=int, default=0, help="of prompts and draws")
    add("--ablation", choices=ABLATIONS, default="zero", help="curves: what is not in a circuit becomes")
    add(
        "--errors",
        choices=ERRORS,
        default="nodes",
        help="curves: errors are nodes like features, or all are kept or dropped",
    )
    add("--layer", type=int, default=None, help="greater-than: MLP of the curve (default: the one that matters most)")
    add(
        "--reference",
        action="store_true",
        help="greater-than: published figures of GPT-2 small beside the measured ones; refused for another model",
    )


def run(args: argparse.Namespace) -> None:
    """Run the study, say what it found, write the page."""
    from pullback.studies import Options, run_study

    if args.name != "greater-than" and (args.layer is not None or args.reference):
        raise ValueError("--layer and --reference are for greater-than")
    names = ("n", "examples", "draws", "seed", "layer", "reference", "ablation", "errors")
    options = Options(**{name: getattr(args, name) for name in names})
    report = run_study(
        args.name,
        open_model(args.model),
        open_set(args),
        args.out,
        attention=open_saes(args),
        options=options,
        verbose=True,
    )
    for what, published, measured in report.get("years", {}).get("reference", []):
        print(f"{what}: published {published:.5g}, measured {'-' if measured is None else f'{measured:.5g}'}")
