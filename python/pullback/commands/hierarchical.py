"""`pullback hierarchical`: the circuit of a logit, a difference of logits or a feature."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pullback.commands.one_target import add_target, must_be_writable, target_of, write
from pullback.commands.opening import attention_saes, command, model_and_set, open_model, open_saes, open_set


def add(commands: Any) -> None:
    summary = "find the circuit of a logit or a feature by hierarchical attribution"
    parser = command(commands, "hierarchical", run, summary)
    model_and_set(parser)
    attention_saes(parser)
    add_arguments(parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="the prompt, in quotes")
    add_target(
        parser,
        "target",
        ("this token's logit", "the logit of one less that of another", "a feature's pre-activation"),
    )
    parser.add_argument("--tau", type=float, default=0.1, help="keep nodes whose attribution is larger")
    parser.add_argument("--relative", action="store_true", help="--tau is a share of the target")
    parser.add_argument("--mode", choices=("signed", "abs"), default="signed", help="what is compared with --tau")
    parser.add_argument("--top", type=int, default=None, help="keep so many nodes of a layer, whatever --tau")
    parser.add_argument("--keep-errors", action="store_true", help="keep errors, whatever they carry")
    parser.add_argument("--out", type=Path, nargs="+", default=[], help="a .html page and a .json file of the circuit")


def run(args: argparse.Namespace) -> None:
    """Find the circuit, list its features, write it."""
    from pullback.attribution import hierarchical

    must_be_writable(args.out)
    found = hierarchical(
        open_model(args.model),
        open_set(args),
        args.prompt,
        target_of(args, "target"),
        tau=args.tau,
        mode=args.mode,
        relative=args.relative,
        top=args.top,
        keep_errors=args.keep_errors,
        attention_saes=open_saes(args),
    )
    nodes, edges = found.to_pandas()
    features = nodes.query("kind in ('feature', 'attention_feature')")
    largest = features.assign(size=features["attribution"].abs()).nlargest(20, "size")
    for node in largest.to_dict("records"):
        print(f"{node['attribution']:+.3f}  {node['id']}  at '{node['token']}'")
    print(
        f"{len(features)} features, {len(nodes)} nodes, {len(edges)} edges; "
        f"leaves reached through them give {found.recovery:.1%} of the target"
    )
    write(found, args.out)
