"""`pullback intervene`: what the model says with features set."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pullback.commands.opening import attention_saes, command, model_and_set, open_model, open_saes, open_set

if TYPE_CHECKING:
    from torch import Tensor

    from pullback.causal.places import Intervention, Supernode
    from pullback.lens import Lens


def add(commands: Any) -> None:
    parser = command(commands, "intervene", run, "set features of a prompt and see what the model says then")
    model_and_set(parser)
    attention_saes(parser)
    parser.add_argument("prompt", help="the prompt, in quotes")
    feature = "LAYER_FEATURE_POSITION"
    parser.add_argument("--set", nargs="+", default=[], metavar=f"{feature}=VALUE", help="values of features")
    parser.add_argument("--scale", nargs="+", default=[], metavar=f"{feature}=FACTOR", help="factors on what they are")
    parser.add_argument("--freeze", choices=("attention", "all", "none"), default="attention", help="what is held")
    parser.add_argument("--top", type=int, default=5, help="say so many next tokens")
    parser.add_argument("--generate", type=int, default=0, metavar="N", help="and write on for N tokens")


def run(args: argparse.Namespace) -> None:
    """Print the likeliest next tokens without and with interventions, and a continuation if asked for."""
    from pullback.causal import generate, intervene
    from pullback.lens import as_lens

    wanted = _interventions(args.set, args.scale)
    if not wanted:
        raise ValueError("name features to set, --set 1_524_8=0, or to scale, --scale 1_524_8=-2")
    if args.top < 1:
        raise ValueError(f"--top must be at least 1, got {args.top}")
    lens, sets = as_lens(open_model(args.model)), open_set(args)
    given = {"freeze": None if args.freeze == "none" else args.freeze, "attention_saes": open_saes(args)}
    before = lens.logits(lens.to_tokens(args.prompt)[None])[0, -1]
    after = intervene(lens, sets, args.prompt, wanted, **given)[-1]
    chosen = (("before", []), ("after", wanted)) if args.generate else ()
    texts = [
        (name, generate(lens, sets, args.prompt, settings, max_new_tokens=args.generate, **given).text)
        for name, settings in chosen
    ]
    for name, logits in (("before", before), ("after", after)):
        print(f"{name}: {_likeliest(lens, logits, args.top)}")
    for name, text in texts:
        print(f"{name}: {args.prompt}{text}")


def _interventions(values: Sequence[str], factors: Sequence[str]) -> list[Intervention]:
    """From `1_524_8=0` or `A1_524_8=0` with values, and with factors on what features are."""
    wanted: list[Intervention] = []
    for text in values:
        node, value = _node_and_number("--set", text)
        wanted += [(feature, value) for feature in node.features]
    return wanted + [_node_and_number("--scale", text) for text in factors]


def _node_and_number(option: str, text: str) -> tuple[Supernode, float]:
    from pullback.causal import Supernode

    node_id, equals, number = text.partition("=")
    try:
        if not equals:
            raise ValueError("there is no =")
        return Supernode.from_node_ids(node_id, [node_id]), float(number)
    except ValueError as error:
        raise ValueError(
            f"{option} takes a feature as graphs name it and a number, LAYER_FEATURE_POSITION=1.5 (of attention: "
            f"ALAYER_...), got '{text}' ({error})"
        ) from error


def _likeliest(lens: Lens, logits: Tensor, n: int) -> str:
    top = logits.softmax(-1).topk(min(n, len(logits)))
    words = lens.to_str_tokens(top.indices)
    return ", ".join(f"'{word}' {p:.1%}" for word, p in zip(words, top.values.tolist(), strict=True))
