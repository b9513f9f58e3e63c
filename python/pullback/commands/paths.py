"""`pullback paths`: the computational paths that lead to one logit, difference of logits or feature."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pullback.commands.one_target import add_target, must_have_writers, target_of, write
from pullback.commands.opening import command, model_and_set, open_model, open_set


def add(commands: Any) -> None:
    summary = "find the paths through features and attention heads that lead to a logit or a feature"
    parser = command(commands, "paths", run, summary)
    model_and_set(parser)
    add_arguments(parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="the prompt, in quotes")
    add_target(
        parser,
        "root",
        ("lead to this token's logit", "to the logit of one less that of another", "to a feature's pre-activation"),
    )
    parser.add_argument("--position", type=int, default=-1, help="of a root's logits; negative: from the end")
    parser.add_argument("--iters", type=int, default=2, help="steps of the longest paths")
    parser.add_argument("--branches", type=int, default=5, help="paths of each length")
    parser.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="NODES",
        help='go through such nodes only, "kind=head,layer>=7" for instance; may be given again: one must match',
    )
    parser.add_argument("--absolute", action="store_true", help="rank by size: follow inhibition as well")
    parser.add_argument("--leaves", action="store_true", help="let MLP errors and biases be ends of paths")
    parser.add_argument("--follow-bos", action="store_true", help="follow heads to beginning-of-sequence tokens too")
    parser.add_argument("--capped", action="store_true", help="cap paths at their smallest activation; makes no graph")
    parser.add_argument("--ln", choices=("frozen", "ratio"), default="frozen", help="how vectors pass a norm")
    parser.add_argument("--sum-over-tokens", action="store_true", help="in what is written, add up all positions")
    parser.add_argument(
        "--out", type=Path, nargs="+", default=[], help="a .html page and a .json file of the paths as one graph"
    )


def run(args: argparse.Namespace) -> None:
    """Search, list the paths, write their graph."""
    import torch

    from pullback.attribution import greedy_paths
    from pullback.lens import as_lens

    must_have_writers(args.out)
    if args.out and args.capped:
        raise ValueError("--capped paths make no graph: leave out --out, or --capped")
    if args.root_feature and args.position != -1:
        raise ValueError("--position is of logits; a --root-feature has its own")
    lens = as_lens(open_model(args.model))
    root = target_of(args, "root")
    if root is None:
        logits = lens.logits(lens.to_tokens(args.prompt)[None])[0]
        there = -len(logits) <= args.position < len(logits)  # else the search says what is wrong
        root = int(logits[args.position if there else -1].argmax())
    paths = greedy_paths(
        lens,
        open_set(args),
        args.prompt,
        root,
        position=args.position,
        num_iters=args.iters,
        num_branches=args.branches,
        raw=not args.capped,
        absolute=args.absolute,
        ignore_bos=not args.follow_bos,
        filters=args.filter or None,
        leaves=args.leaves,
        ln=args.ln,
    )
    for path in paths:
        print(path)
    if isinstance(root, int):
        print(f"the root is the likeliest token, '{lens.to_str_tokens(torch.tensor(root))[0]}'")
    if args.capped:
        return
    graph = paths.graph()
    print(f"{graph.n_nodes} nodes, {graph.n_edges} edges, every node sums to {graph.check():.1e}")
    write(graph.sum_over_tokens() if args.sum_over_tokens else graph, args.out)
