"""What commands have in common: how they are put into the parser, and how a model and a set are named and opened."""

from __future__ import annotations

import argparse
from difflib import get_close_matches
from pathlib import Path
from typing import Any

ZOO = ("exact", "planted", "tiny-mix")
MODEL_HELP = "a model of the zoo (tiny-mix, planted, exact), or a local directory or hub id that TransformerLens opens"


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults where there are any: "(default: None)" says nothing, nor does that of a switch."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        if isinstance(default, list):
            default = " ".join(map(str, default)) or None
        if default is None or action.nargs == 0:
            return action.help
        return f"{action.help} (default: {default})"


def command(commands: Any, name: str, run: Any, summary: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary, formatter_class=_Help)
    parser.set_defaults(run=run)
    return parser


def open_model(name: str) -> Any:
    """A zoo model by name, else whatever TransformerLens makes of a directory or hub id."""
    from pullback import zoo
    from pullback.lens import open_transformers

    if name in ZOO:
        return zoo.load(name)
    if not Path(name).exists() and (meant := get_close_matches(name, ZOO, n=1, cutoff=0.8)):
        raise ValueError(f"no model '{name}'; the zoo has {', '.join(ZOO)}: did you mean '{meant[0]}'?")
    try:
        return open_transformers(name)
    except ValueError as error:
        raise ValueError(f"{error}. The zoo has {', '.join(ZOO)}") from error


def model_and_set(parser: argparse.ArgumentParser) -> None:
    """What `open_model` and `open_set` read."""
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("--transcoders", default=None, help="folder or hub id of a set (default: the zoo's own)")
    parser.add_argument(
        "--lazy",
        action="store_true",
        help="leave the weights of --transcoders in their files: for sets larger than memory",
    )


def open_set(args: argparse.Namespace) -> Any:
    from pullback import zoo
    from pullback.transcoders import load_transcoders

    if args.transcoders is not None:
        return load_transcoders(args.transcoders, lazy=args.lazy)
    if args.lazy:
        raise ValueError("--lazy is for the files of --transcoders")
    if args.model in ZOO:
        return zoo.transcoders(args.model)
    raise ValueError(f"--transcoders is needed: '{args.model}' is not one of {', '.join(ZOO)}, which bring their own")


def corpus(parser: argparse.ArgumentParser) -> None:
    """How the file of `--data` is read, for `read_tokens`."""
    add = parser.add_argument
    add("--context-size", type=int, default=None, help="tokens of a context; packs the lines of a .txt file")
    add("--column", default=None, help="of a .jsonl file (default: input_ids, tokens, text or content)")
    add("--token-dtype", default=None, help="of a .bin file, uint16 for instance")


def attention_saes(parser: argparse.ArgumentParser) -> None:
    """What `open_saes` reads."""
    parser.add_argument(
        "--attention-saes",
        default=None,
        metavar="SET",
        help="autoencoders of attention outputs, whose features count too: a folder, hub id; 'zoo': tiny-mix's own",
    )


def open_saes(args: argparse.Namespace) -> Any:
    from pullback import zoo
    from pullback.transcoders import load_transcoders

    if args.attention_saes is None:
        return None
    return zoo.saes(args.model) if args.attention_saes == "zoo" else load_transcoders(args.attention_saes)
