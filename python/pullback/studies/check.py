"""The causal check: ablating a few features removes a behaviour, and ablating as many others does not."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.studies.behaviours import Behaviour, distinct
from pullback.studies.choose import SIZES, mask, ranked
from pullback.studies.control import Removal, removal
from pullback.studies.dictionaries import Dictionaries, Drop, by_group
from pullback.studies.prompts import Prompts, Question, padded

GOAL = 0.85
"""Of the margin, on the prompts that say how many: the bar, and room for what is found on others."""


@dataclass(frozen=True, eq=False)
class Split:
    """Prompts to choose features on, to say how many, and to test: no prompt is in two of them."""

    choose: Prompts
    size: Prompts
    test: Prompts
    keys: list[str]

    def groups(self, prompts: Prompts) -> Tensor:
        """The place of each prompt's key among the keys, (N)."""
        return torch.tensor([self.keys.index(key) for key in prompts.keys])


def split(behaviour: Behaviour, d_vocab: int, n: int = 32, per_key: int = 16, seed: int = 0) -> Split:
    """n prompts to test and n to say how many, keys in turn; and for each of these keys `per_key` others, or as many
    more as make 64 in all. Raises ValueError where there are fewer than two prompts of a key."""
    rng = random.Random(seed)
    keys = behaviour.keys()
    rng.shuffle(keys)
    keys = keys[:n]
    taken: set[tuple[int, ...]] = set()
    in_turn = [keys[i % len(keys)] for i in range(n)]
    parts: list[list[Question]] = [
        distinct(behaviour, wanted, rng, taken)
        for wanted in (in_turn, in_turn, [key for key in keys for _ in range(max(per_key, -(-64 // len(keys))))])
    ]
    known = {question.key for question in parts[2]}
    test, size, choose = (padded([q for q in part if q.key in known], d_vocab) for part in parts)
    return Split(choose, size, test, [key for key in keys if key in known])


@dataclass(frozen=True)
class Check(Removal):
    """What the features chosen for each key take from the margin of the test prompts.

    k: of them for each key. curve: {k: dropped} on the prompts that say how many, up to the k that is enough.
    """

    arm: str
    k: int
    curve: dict[int, float]
    features: list[dict[str, object]]


def causal_check(
    dictionaries: Dictionaries,
    parts: Split,
    arm: str,
    *,
    sizes: Sequence[int] = SIZES,
    draws: int = 20,
    seed: int = 0,
    goal: float = GOAL,
) -> Check:
    """Choose features on one part, the smallest number that takes `goal` of the margin on the second (or the best
    number there is), and test both them and random ones on the third."""

    def chosen(prompts: Prompts, order: Tensor) -> Drop:
        return by_group(parts.groups(prompts), prompts.tokens.shape[1], mask(order, dictionaries.n))

    whole = float(parts.size.margins(dictionaries.lens.logits(parts.size.tokens)).mean())
    curve: dict[int, float] = {}
    best = torch.zeros(len(parts.keys), 0, dtype=torch.long)
    for k, order in ranked(dictionaries, parts.choose, parts.groups(parts.choose), sizes):
        curve[k] = 1 - float(dictionaries.ablated_margins(parts.size, chosen(parts.size, order)).mean()) / whole
        if curve[k] == max(curve.values()):
            best = order
        if curve[k] >= goal:
            break
    tested = removal(dictionaries, parts.test, chosen(parts.test, best), draws=draws, seed=seed)
    features = named(dictionaries, best, parts.keys)
    return Check(**vars(tested), arm=arm, k=best.shape[1], curve=curve, features=features)


def named(dictionaries: Dictionaries, order: Tensor, keys: list[str]) -> list[dict[str, object]]:
    """Every feature that is chosen for some key, those of most keys first."""
    chosen_by: dict[int, list[str]] = {}
    for row, key in zip(order.tolist(), keys, strict=True):
        for feature in row:
            chosen_by.setdefault(feature, []).append(key)
    table = []
    for feature, of in sorted(chosen_by.items(), key=lambda item: -len(item[1])):
        site, own = dictionaries.place(feature)
        table.append({"kind": site.kind, "layer": site.layer, "feature": own, "keys": of})
    return table
