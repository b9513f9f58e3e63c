"""`pullback serve`: the graphs of a folder in a browser."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pullback.commands.opening import command


def add(commands: Any) -> None:
    summary = "show the graphs of a folder in a browser, and keep what is noted on them"
    parser = command(commands, "serve", run, summary)
    parser.add_argument("folder", type=Path, help="folder of graphs: .safetensors of Graph.save, or graph .json")
    parser.add_argument("--port", type=int, default=8041, help="0 takes a free one")
    parser.add_argument(
        "--cards", type=Path, default=None, help="folder of feature cards: {layer}_{feature}.json, or a feature pack"
    )


def run(args: argparse.Namespace) -> None:
    """Serve until Ctrl-C."""
    from pullback.serve import GraphFolder
    from pullback.viz.server import GraphServer

    shelf = GraphFolder(args.folder, args.cards)
    try:
        server = GraphServer(shelf, args.port)
    except (OSError, OverflowError) as error:
        raise ValueError(f"cannot serve at port {args.port} ({error}); --port 0 takes a free one") from error
    with server:
        print(f"{len(shelf.names())} graphs of {args.folder} at {server.url} (Ctrl-C ends)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nended; notes are saved beside the graphs", flush=True)
