"""What `train`, `cache` and `sweep` have in common: what is run through the model, and what is read of it."""

from __future__ import annotations

import argparse
from pathlib import Path

from pullback.commands.opening import MODEL_HELP


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument(
        "--data",
        type=Path,
        default=None,
        help="file of prompts or documents a line (.txt), .jsonl, or token ids (.npy, .bin)",
    )
    parser.add_argument(
        "--context-size",
        type=int,
        default=None,
        help="tokens of a context; packs the lines of a .txt "
        "file into contexts, where each would be a prompt of its own",
    )
    parser.add_argument("--column", default=None, help="of a .jsonl file (default: input_ids, tokens, text or content)")
    parser.add_argument("--token-dtype", default=None, help="of a .bin file, uint16 for instance")
    parser.add_argument("--layers", type=int, nargs="+", default=None, help="layers to use (default: all)")
    parser.add_argument("--hook-name", default="mlp.hook_in", help="where the input is read, inside blocks.{l}")
    parser.add_argument(
        "--hook-name-out",
        default="hook_mlp_out",
        help="where the target is read, inside blocks.{l}; the same as --hook-name makes autoencoders",
    )
    parser.add_argument("--exclude-special-tokens", action="store_true", help="leave out all special tokens")
    parser.add_argument("--autocast-lm", action="store_true", help="let the model multiply in bfloat16")
    parser.add_argument(
        "--cache-tokens",
        type=int,
        default=None,
        help="tokens to cache (default: all, once; of a sweep, as many as it trains on)",
    )
    parser.add_argument("--cache-dtype", default="float32", help="float32, bfloat16, float16 or int8")
