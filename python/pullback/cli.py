"""The `pullback` command: a thin mirror of the Python API."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pullback._util.atomic import must_be_writable
from pullback.commands import (
    cache,
    convert,
    dashboard,
    demo,
    doctor,
    eval,
    features,
    graph,
    hierarchical,
    intervene,
    paths,
    plan,
    serve,
    sheet,
    study,
    sweep,
    train,
)

COMMANDS = (
    demo,
    train,
    plan,
    cache,
    sweep,
    eval,
    graph,
    paths,
    hierarchical,
    features,
    dashboard,
    sheet,
    intervene,
    study,
    serve,
    convert,
    doctor,
)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status. What the user got wrong is a sentence on stderr, not a traceback."""
    args = _parser().parse_args(argv)
    try:
        for path in _written(args):
            must_be_writable(path)
        return int(args.run(args) or 0)
    except (ValueError, OSError, FloatingPointError) as error:
        said = str(error).removeprefix(f"{args.command}: ")
        if isinstance(error, OSError) and error.filename and error.strerror:
            said = f"{error.filename}: {error.strerror}"
        print(f"pullback {args.command}: {said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\npullback {args.command}: interrupted; what was written before is intact", file=sys.stderr)
        return 130


def _written(args: argparse.Namespace) -> list[Path]:
    """The files and folders that options name to be written."""
    given = (getattr(args, name, None) for name in ("out", "json"))
    return [path for value in given if value for path in (value if isinstance(value, list) else [value])]


def _parser() -> argparse.ArgumentParser:
    from importlib.metadata import version

    parser = argparse.ArgumentParser(
        prog="pullback", description="Train sparse transcoders fast and turn them into circuits at scale."
    )
    parser.add_argument("--version", action="version", version=f"pullback {version('pullback')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
