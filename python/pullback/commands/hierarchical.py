"""`pullback hierarchical`: the circuit of a logit, a difference of logits or a feature."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pullback.commands.one_target import add_target, must_have_writers, target_of, write
from pullback.commands.opening import attention_saes, command, model_and_set, open_model, open_saes, open_set

if TYPE_CHECKING:
    from pullback.attribution.hierarchical import Attended, Hierarchical
    from pullback.lens import Lens
    from pullback.transcoders import LayeredDictionary


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
        (
            "this token's logit",
            "the logit of one less that of another",
            "a feature's pre-activation; A1 for LAYER: of the attention of layer 1",
        ),
    )
    parser.add_argument("--tau", type=float, default=0.1, help="keep nodes whose attribution is larger")
    parser.add_argument("--relative", action="store_true", help="--tau is a share of the target")
    parser.add_argument("--mode", choices=("signed", "abs"), default="signed", help="what is compared with --tau")
    parser.add_argument(
        "--top",
        type=int,
        default=None,
        help="keep so many nodes of an MLP's or attention's output, instead of by --tau",
    )
    parser.add_argument("--keep-errors", action="store_true", help="keep errors, whatever they carry")
    parser.add_argument("--standard", action="store_true", help="for comparison: all paths, cut afterwards")
    parser.add_argument(
        "--qk", type=int, default=None, metavar="N", help="list the N entries of patterns that carry most, and why"
    )
    parser.add_argument("--rival", action="store_true", help="of --qk: scores less that of what is looked at next most")
    parser.add_argument("--out", type=Path, nargs="+", default=[], help="a .html page and a .json file of the circuit")


def run(args: argparse.Namespace) -> None:
    """Find the circuit, list its features, see what the model does with it alone, write it."""
    from pullback.attribution import hierarchical
    from pullback.lens import as_lens

    must_have_writers(args.out)
    if args.qk is not None and args.qk < 1:
        raise ValueError(f"--qk takes a number of entries of patterns, 1 or more, got {args.qk}")
    if args.rival and args.qk is None:
        raise ValueError("--rival is for the scores of --qk: give --qk N, too")
    lens, sets, saes = as_lens(open_model(args.model)), open_set(args), open_saes(args)
    found = hierarchical(
        lens,
        sets,
        args.prompt,
        target_of(args, "target"),
        tau=args.tau,
        mode=args.mode,
        relative=args.relative,
        top=args.top,
        keep_errors=args.keep_errors,
        standard=args.standard,
        attention_saes=saes,
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
    found = _judged(found, lens, sets, saes, args.target_difference)
    for errors, share in found.faithfulness.items():
        print(f"with all other features at zero and errors {errors}, the model keeps {share:.1%} of it")
    if args.qk is not None:
        found = found.attention(lens, sets, top=args.qk, rival=args.rival, attention_saes=saes)
        for one in found.attended:
            print(_said(one, found.graph.meta["str_tokens"]))
    write(found, args.out)


def _said(one: Attended, words: list[str]) -> str:
    """Where a head looks, what it brings, and the pairs that its score is made of."""
    at, qk = one.place, one.qk
    where = f"'{words[at.query_pos]}' ({at.query_pos}) looks at '{words[at.key_pos]}' ({at.key_pos})"
    rival = "" if qk.against is None else f" above that of '{words[qk.against]}' ({qk.against})"
    lines = [
        f"head {at.layer}.{at.head}, {where} by {qk.pattern:.1%}: carries {one.carried:+.3f}; "
        f"score {qk.score:+.2f}{rival}, of which",
        *(f"    {value:+.2f}  {query} with {key}" for query, key, value in qk.top_pairs(5)),
    ]
    return "\n".join(lines)


def _judged(
    found: Hierarchical,
    lens: Lens,
    sets: LayeredDictionary,
    saes: LayeredDictionary | None,
    difference: list[str] | None,
) -> Hierarchical:
    """With what the model does, where it is not the same with all features and with none."""
    from pullback.attribution import FeatureTarget
    from pullback.attribution.nodes import ATTENTION_FEATURE, FEATURES
    from pullback.attribution.reader import token_id
    from pullback.causal import Margin, circuit_faithfulness

    n, t = found.whole.nodes, found.target
    others = found.whole.of_kind(*FEATURES)
    others[t] = False
    if not bool(others.any()):
        return found
    if difference:
        measure = Margin(*(token_id(lens, token) for token in difference))
    elif (kind := int(n.kind[t])) in FEATURES:
        place = (int(n.layer[t]), int(n.pos[t]), int(n.feature[t]))
        measure = FeatureTarget(*place, attention=kind == ATTENTION_FEATURE)
    else:
        measure = Margin(int(n.feature[t]))
    shares = {
        errors: circuit_faithfulness(
            lens, sets, found.whole, found.kept, measure=measure, errors=errors, attention_saes=saes
        )
        for errors in ("kept", "dropped")
    }
    return replace(found, faithfulness=shares)
