"""The causal check: ablating a few features removes a behaviour, and ablating as many others does not."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from pullback.ops import SparseActivations
from pullback.studies.behaviours import Behaviour, distinct
from pullback.studies.choose import SIZES, mask, ranked
from pullback.studies.dictionaries import Dictionaries, Drop, Site, by_group
from pullback.studies.prompts import Prompts, Question, padded

KILLED, SPARED = 0.8, 0.1
"""The bar: the share of the margin that chosen features must take at least, and random ones at most."""


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
class Check:
    """What ablation takes from the margin, as shares of its mean over the prompts.

    dropped: by chosen features. control: by random ones, a figure for each draw. drawn: how many random entries there
    were for each chosen one; less than 1 where nothing else was active at a place. per_prompt: features that were
    active and ablated, in the mean. curve: {k: dropped} on the prompts that say how many, up to the k that is enough.
    """

    arm: str
    k: int
    n_prompts: int
    margin: float
    dropped: float
    control: list[float]
    drawn: float
    per_prompt: float
    entries: float
    curve: dict[int, float]
    killed: float
    features: list[dict[str, object]]

    @property
    def holds(self) -> bool:
        """Whether it passes the bar, random features in the mean over draws."""
        return self.dropped >= KILLED and fmean(self.control) <= SPARED


def causal_check(
    dictionaries: Dictionaries,
    parts: Split,
    arm: str,
    *,
    sizes: Sequence[int] = SIZES,
    draws: int = 5,
    seed: int = 0,
    goal: float = KILLED,
) -> Check:
    """Choose features on one part, the smallest number that takes `goal` of the margin on the second (or the best
    number there is), and test both them and random ones on the third."""

    def lost(prompts: Prompts, drop: Drop) -> Tensor:
        return clean(prompts) - dictionaries.ablated_margins(prompts, drop)

    def clean(prompts: Prompts) -> Tensor:
        return prompts.margins(dictionaries.lens.logits(prompts.tokens))

    def chosen(prompts: Prompts, order: Tensor) -> Drop:
        return by_group(parts.groups(prompts), prompts.tokens.shape[1], mask(order, dictionaries.n))

    whole = float(clean(parts.size).mean())
    curve: dict[int, float] = {}
    best = torch.zeros(len(parts.keys), 0, dtype=torch.long)
    for k, order in ranked(dictionaries, parts.choose, parts.groups(parts.choose), sizes):
        curve[k] = float(lost(parts.size, chosen(parts.size, order)).mean()) / whole
        if curve[k] == max(curve.values()):
            best = order
        if curve[k] >= goal:
            break
    test, drop = parts.test, chosen(parts.test, best)
    margins, gone = clean(test), lost(test, drop)
    acts = dictionaries.encoded(test.tokens)
    hit = {site.start: inside(test, acts[site.start]) & drop(site, acts[site.start]) for site in dictionaries.sites}
    mean = float(margins.mean())
    control, drawn = [], []
    for draw in range(draws):
        picked = matched(dictionaries, test, acts, drop, torch.Generator().manual_seed(seed + draw))
        control.append(float(lost(test, _listed(picked)).mean()) / mean)
        drawn.append(sum(len(keys) for keys in picked.values()))
    entries = sum(int(h.sum()) for h in hit.values())
    active = sum(_active(acts[start], h, test.tokens.shape[1]) for start, h in hit.items())
    return Check(
        arm=arm,
        k=best.shape[1],
        n_prompts=len(test),
        margin=mean,
        dropped=float(gone.mean()) / mean,
        control=control,
        drawn=fmean(drawn) / max(entries, 1),
        per_prompt=active / len(test),
        entries=entries / len(test),
        curve=curve,
        killed=float((gone >= KILLED * margins).double().mean()),
        features=named(dictionaries, best, parts.keys),
    )


def inside(prompts: Prompts, acts: SparseActivations) -> Tensor:
    """Entries at positions up to the answer's, (nnz) bool."""
    T = prompts.tokens.shape[1]
    return acts.rows() % T <= prompts.at.to(acts.device)[acts.rows() // T]


def matched(
    dictionaries: Dictionaries,
    prompts: Prompts,
    acts: dict[int, SparseActivations],
    drop: Drop,
    generator: torch.Generator,
) -> dict[int, Tensor]:
    """Of every site, entries drawn from the active ones that `drop` leaves: at each position of each prompt as many as
    it takes there, or as many as there are. Keys row * n_features + feature."""
    picked = {}
    for site in dictionaries.sites:
        a = acts[site.start]
        rows, taken = a.rows(), drop(site, a)
        need = torch.bincount(rows[taken & inside(prompts, a)], minlength=a.n_rows)
        free = (~taken).nonzero()[:, 0]
        free = free[torch.randperm(len(free), generator=generator)]
        free = free[torch.argsort(rows[free], stable=True)]
        counts = torch.bincount(rows[free], minlength=a.n_rows)
        rank = torch.arange(len(free)) - (torch.cumsum(counts, 0) - counts)[rows[free]]
        won = free[rank < need[rows[free]]]
        picked[site.start] = rows[won] * a.n_features + a.indices[won]
    return picked


def _listed(picked: dict[int, Tensor]) -> Drop:
    def drop(site: Site, acts: SparseActivations) -> Tensor:
        return torch.isin(acts.rows() * acts.n_features + acts.indices, picked[site.start])

    return drop


def _active(acts: SparseActivations, hit: Tensor, T: int) -> int:
    """Number of (prompt, feature) among entries."""
    return len(torch.unique(acts.rows()[hit] // T * acts.n_features + acts.indices[hit]))


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
