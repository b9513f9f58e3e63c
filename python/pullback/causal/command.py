"""What `pullback intervene` does with its options."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pullback.causal.generate import generate
from pullback.causal.intervene import intervene
from pullback.causal.places import Intervention, Supernode
from pullback.lens import Lens, as_lens
from pullback.transcoders import LayeredDictionary


def run_intervene(args: Namespace, model: Any, sets: LayeredDictionary) -> None:
    """Print the likeliest next tokens without and with interventions, and a continuation if asked for."""
    lens = as_lens(model)
    wanted = _interventions(args.set, args.scale)
    freeze = None if args.freeze == "none" else args.freeze
    before = lens.logits(lens.to_tokens(args.prompt)[None])[0, -1]
    after = intervene(lens, sets, args.prompt, wanted, freeze=freeze)[-1]
    for name, logits in (("before", before), ("after", after)):
        print(f"{name}: {_likeliest(lens, logits, args.top)}")
    if args.generate:
        options = {"max_new_tokens": args.generate, "freeze": freeze}
        for name, chosen in (("before", []), ("after", wanted)):
            print(f"{name}: {args.prompt}{generate(lens, sets, args.prompt, chosen, **options).text}")


def _interventions(values: Sequence[str], factors: Sequence[str]) -> list[Intervention]:
    """From `1_524_8=0` with values, and with factors on what features are."""
    wanted: list[Intervention] = []
    for text in values:
        node, value = _node_and_number("--set", text)
        wanted += [(layer, pos, feature, value) for layer, pos, feature in node.features]
    return wanted + [_node_and_number("--scale", text) for text in factors]


def _node_and_number(option: str, text: str) -> tuple[Supernode, float]:
    node_id, equals, number = text.partition("=")
    try:
        if not equals:
            raise ValueError("there is no =")
        return Supernode.from_node_ids(node_id, [node_id]), float(number)
    except ValueError as error:
        raise ValueError(
            f"{option} takes a feature as graphs name it and a number, LAYER_FEATURE_POSITION=1.5, "
            f"got '{text}' ({error})"
        ) from error


def _likeliest(lens: Lens, logits: Tensor, n: int) -> str:
    top = torch.softmax(logits, -1).topk(min(n, len(logits)))
    words = lens.to_str_tokens(top.indices)
    return ", ".join(f"'{word}' {p:.1%}" for word, p in zip(words, top.values.tolist(), strict=True))
