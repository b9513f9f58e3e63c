"""`pullback graph`: one answer of a model, or whatever else of it is asked, as an attribution graph."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pullback.commands import many
from pullback.commands.one_target import PLACE, feature_target
from pullback.commands.opening import attention_saes, command, model_and_set, open_model, open_saes, open_set

if TYPE_CHECKING:
    from pullback.attribution import Graph
    from pullback.attribution.asked import Target

WRITERS = {".html": "to_html", ".json": "to_neuronpedia", ".safetensors": "save"}
THRESHOLDS = {"node_threshold": 0.8, "edge_threshold": 0.98}
SETTINGS = (
    "position",
    "max_n_logits",
    "desired_logit_prob",
    "batch_size",
    "max_feature_nodes",
    "edge_mass",
    "edges_per_target",
    "precision",
    "offload",
)


def add(commands: Any) -> None:
    summary = "explain a model's answer to one prompt, or to every prompt of a file, as attribution graphs"
    parser = command(commands, "graph", run, summary)
    model_and_set(parser)
    add_arguments(parser)
    many.add_arguments(parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="the prompt, in quotes; or give --prompts")
    parser.add_argument("--chat", action="store_true", help="the prompt is a message to an assistant: use its template")
    parser.add_argument(
        "--offload", choices=("cpu", "disk"), default=None, help="move the model there once it has read the prompt"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="a .html page or .json (Neuronpedia) of the pruned graph, or .safetensors of the whole one; a folder with "
        "--prompts",
    )
    add_settings(parser)
    for name, default in THRESHOLDS.items():
        option, what = f"--{name.replace('_', '-')}", name.split("_")[0]
        parser.add_argument(option, type=float, help=f"share of {what} influence to keep (default: {default})")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The settings of attribution, by their names."""
    attention_saes(parser)
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="TOKEN",
        help="explain this token's logit; may be given again, as all targets (default: the likely next tokens)",
    )
    parser.add_argument(
        "--target-difference",
        action="append",
        nargs=2,
        default=[],
        metavar="TOKEN",
        help="explain the logit of one token less that of another",
    )
    parser.add_argument(
        "--target-feature",
        action="append",
        nargs=3,
        default=[],
        metavar=PLACE,
        help="explain a feature's pre-activation; A1 for LAYER: of the attention of layer 1",
    )
    parser.add_argument("--position", type=int, default=-1, help="explain logits here; negative: from the end")
    parser.add_argument("--max-n-logits", type=int, default=10, help="explain at most so many next tokens")
    parser.add_argument("--desired-logit-prob", type=float, default=0.95, help="and as few as reach this probability")
    parser.add_argument("--batch-size", type=int, default=256, help="targets pulled back together: memory")
    parser.add_argument("--max-feature-nodes", type=int, default=7500, help="keep the most influential features")
    parser.add_argument(
        "--edge-mass", type=float, default=1.0, help="keep the edges that cover this share of each node's input"
    )
    parser.add_argument("--edges-per-target", type=int, default=None, help="and at most so many: memory")
    parser.add_argument(
        "--precision", choices=("bfloat16",), default=None, help="multiply gradients in this (default: the model's)"
    )


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for `attribute`."""
    from pullback.attribution import LogitDifference, LogitTarget

    if args.position != -1 and args.target_feature and not (args.target or args.target_difference):
        raise ValueError("--position is of logits; a --target-feature has its own")
    targets: list[Target] = [LogitTarget(token) for token in args.target]
    targets += [LogitDifference((plus, minus)) for plus, minus in args.target_difference]
    targets += [feature_target("--target-feature", place) for place in args.target_feature]
    given = {name: getattr(args, name) for name in SETTINGS}
    return {"attribution_targets": targets or None, "attention_saes": open_saes(args), **given}


def run(args: argparse.Namespace) -> None:
    """One graph, or those of every prompt of a file."""
    if args.prompts is not None:
        many.run(args, settings(args), _thresholds(args, pruned=args.prune))
    else:
        _one(args)


def _thresholds(args: argparse.Namespace, *, pruned: bool) -> dict[str, float]:
    """Arguments of `prune`, none for a graph that stays whole. Raises ValueError for one that it would not use."""
    found = {name: getattr(args, name) for name in THRESHOLDS}
    for name, value in found.items():
        option = f"--{name.replace('_', '-')}"
        if value is not None and not pruned:
            kept = "graphs are whole without --prune" if args.prompts else "a .safetensors file keeps the whole graph"
            raise ValueError(f"{option} is of pruned graphs, and {kept}")
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{option} must lie in [0, 1], got {value}")
    return {name: THRESHOLDS[name] if value is None else value for name, value in found.items()} if pruned else {}


def _one(args: argparse.Namespace) -> None:
    """Build, prune unless the whole is asked for, write; says what is explained, and how well."""
    from pullback.attribution import attribute

    if args.prune or (args.num_shards, args.shard_id, args.workers) != (1, 0, 1):
        raise ValueError("--prune, --num-shards, --shard-id and --workers are for --prompts FILE")
    if args.out.suffix not in WRITERS:
        raise ValueError(f"--out must end in {', '.join(WRITERS)}, got '{args.out}'")
    if args.out.is_dir():
        raise ValueError(f"--out names a folder: '{args.out}'")
    # A page can only show a part; a file can keep all of it.
    thresholds = _thresholds(args, pruned=args.out.suffix != ".safetensors")
    prompt = [{"role": "user", "content": args.prompt}] if args.chat else args.prompt
    graph = attribute(open_model(args.model), open_set(args), prompt, **settings(args), verbose=True)
    scores = graph.scores()
    written = graph.prune(**thresholds) if thresholds else graph
    getattr(written, WRITERS[args.out.suffix])(args.out)
    _say_what_is_explained(graph)
    print(f"{graph.n_nodes} nodes, {graph.n_edges} edges, every target sums to {graph.check():.1e}")
    print(f"replacement {scores.replacement:.3f}, completeness {scores.completeness:.3f}")
    print(f"wrote {args.out}: {written.n_nodes} nodes, {written.n_edges} edges")


def _say_what_is_explained(graph: Graph) -> None:
    from pullback.attribution.nodes import LOGIT

    if answers := graph.answers():
        print("answer: " + ", ".join(f"'{label}' {p:.1%}" for label, p in answers))
    ids, labels = graph.node_ids(), graph.labels()
    for place in (graph.explained & ~graph.of_kind(LOGIT)).nonzero()[:, 0].tolist():
        name = labels.get(place, f"feature {ids[place]}")
        print(f"explained: {name} = {float(graph.nodes.preactivation[place]):.3g}")
