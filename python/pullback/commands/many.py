"""`pullback graph --prompts`: graphs of every prompt of a file, into a folder with a table."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pullback.commands.opening import open_model, open_set

# Where a JSON line has its prompt: text, token ids, or the messages of a chat.
KEYS = ("prompt", "text", "tokens", "input_ids", "messages")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prompts",
        action=_InPlaceOfThePrompt,
        type=Path,
        default=None,
        help="explain every prompt of this file, one a line, or JSON lines (.jsonl); --out is then a folder, and a run "
        "that was stopped goes on",
    )
    parser.add_argument("--num-shards", type=int, default=1, help="with --prompts: divide them among so many runs")
    parser.add_argument("--shard-id", type=int, default=0, help="with --prompts: which of them this is, from 0")
    parser.add_argument(
        "--workers", type=int, default=1, help="with --prompts, on a CPU: processes that share them, a thread each"
    )
    parser.add_argument("--prune", action="store_true", help="with --prompts: write pruned graphs, by both thresholds")


class _InPlaceOfThePrompt(argparse.Action):
    """Stores its value; the prompt need not be given then. (Were it optional, it could not stand behind options.)"""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:  # noqa: ARG002
        setattr(namespace, self.dest, values)
        for action in parser._actions:
            if action.dest == "prompt":
                action.required = False


def read_prompts(path: Path) -> list[Any]:
    """The prompts of a text file, a line each, or of JSON lines: strings, token ids, or objects with one of KEYS.

    Raises ValueError for a file without prompts, or a line that is none.
    """
    from pullback.training.command import read_prompts as read_lines

    lines = read_lines(path)
    if path.suffix != ".jsonl":
        return lines
    return [_of_json(path, number, line) for number, line in enumerate(lines, start=1)]


def _of_json(path: Path, number: int, line: str) -> Any:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number} is no JSON: {error}") from error
    if isinstance(value, dict):
        value = next((value[key] for key in KEYS if key in value), None)
    if not isinstance(value, str | list):
        raise ValueError(f"{path}, line {number} has no prompt: a string, token ids, or one of {', '.join(KEYS)}")
    return value


def run(args: argparse.Namespace, settings: Mapping[str, Any], thresholds: Mapping[str, float]) -> None:
    """Explain all of them; says what went wrong most often."""
    from pullback.attribution import attribute_many

    if args.prompt is not None:
        raise ValueError("give a prompt or --prompts FILE, not both")
    prompts = read_prompts(args.prompts)
    if args.chat:
        prompts = [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts]
    table = attribute_many(
        open_model(args.model),
        open_set(args),
        prompts,
        args.out,
        num_shards=args.num_shards,
        shard_id=args.shard_id,
        workers=args.workers,
        **thresholds,
        **settings,
    )
    failed = table.loc[table["status"] != "ok", "status"]
    for why, count in Counter(failed.tolist()).most_common(3):
        print(f"{count} times: {why}")
