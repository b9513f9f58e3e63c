"""What ablation of chosen features takes from a margin, against that of as many others drawn at random."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from pullback.ops import SparseActivations
from pullback.studies.dictionaries import Dictionaries, Drop, listed, places
from pullback.studies.prompts import Prompts

KILLED, SPARED = 0.8, 0.1
"""The bar: the share of the margin that chosen features must take at least, and random ones at most."""


@dataclass(frozen=True)
class Removal:
    """What ablation takes from the margin, as shares of its mean over the prompts.

    dropped: by the chosen features. control: by random ones, a figure for each draw. drawn: random entries for each
    chosen one; displaced: the part of them that had to be drawn elsewhere in the prompt, as too few others were active
    at the same place. entries, per_prompt: active entries, and different features, ablated in a prompt, in the mean.
    killed: the part of the prompts that lose as much as the bar asks for.
    """

    n_prompts: int
    margin: float
    dropped: float
    control: list[float]
    drawn: float
    displaced: float
    per_prompt: float
    entries: float
    killed: float

    @property
    def spared(self) -> float:
        """What random features take, in the mean over draws."""
        return fmean(self.control)

    @property
    def spread(self) -> float:
        """The standard deviation over draws."""
        return stdev(self.control) if len(self.control) > 1 else 0.0

    @property
    def holds(self) -> bool:
        """Whether it passes the bar, random features in the mean over draws."""
        return self.dropped >= KILLED and self.spared <= SPARED

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"spared": self.spared, "spread": self.spread, "holds": self.holds}


def removal(dictionaries: Dictionaries, prompts: Prompts, drop: Drop, *, draws: int, seed: int = 0) -> Removal:
    """Ablate what `drop` takes, and in its place as many random entries, `draws` times."""
    margins = prompts.margins(dictionaries.lens.logits(prompts.tokens))
    mean = float(margins.mean())
    gone = margins - dictionaries.ablated_margins(prompts, drop)
    acts = dictionaries.encoded(prompts.tokens)
    hit = {s.start: inside(prompts, acts[s.start]) & drop(s, acts[s.start]) for s in dictionaries.sites}
    entries = sum(int(h.sum()) for h in hit.values())
    features = sum(_features(acts[start], h, prompts.tokens.shape[1]) for start, h in hit.items())
    control, drawn, displaced = [], [], []
    for draw in range(draws):
        picked = matched(dictionaries, prompts, acts, drop, torch.Generator().manual_seed(seed + draw))
        control.append(float((margins - dictionaries.ablated_margins(prompts, listed(picked))).mean()) / mean)
        drawn.append(sum(map(len, picked.values())))
        displaced.append(sum(_displaced(acts[start], hit[start], found) for start, found in picked.items()))
    return Removal(
        n_prompts=len(prompts),
        margin=mean,
        dropped=float(gone.mean()) / mean,
        control=control,
        drawn=fmean(drawn) / max(entries, 1),
        displaced=fmean(displaced) / max(fmean(drawn), 1),
        per_prompt=features / len(prompts),
        entries=entries / len(prompts),
        killed=float((gone >= KILLED * margins).double().mean()),
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
    """Of every prompt as many random entries as `drop` takes, of those active that it leaves: in each layer at each
    position as many as it takes there; where fewer are active, the rest at other positions of that layer, and where
    these do not do, in other layers. {site: places}."""
    T = prompts.tokens.shape[1]
    of = [acts[site.start] for site in dictionaries.sites]
    rows = torch.cat([a.rows() for a in of])
    site = torch.repeat_interleave(torch.arange(len(of)), torch.tensor([a.nnz for a in of])).to(rows)
    taken = torch.cat([drop(s, a) for s, a in zip(dictionaries.sites, of, strict=True)])
    there = torch.cat([inside(prompts, a) for a in of])
    picked = torch.zeros_like(there)
    prompt = rows // T
    for group in (site * len(prompts) * T + rows, site * len(prompts) + prompt, prompt):
        n = int(group.max()) + 1
        missing = torch.bincount(group[taken & there], minlength=n) - torch.bincount(group[picked], minlength=n)
        picked |= _drawn(group, there & ~taken & ~picked, missing, generator)
    parts = picked.split([a.nnz for a in of])
    return {s.start: places(a)[part] for s, a, part in zip(dictionaries.sites, of, parts, strict=True)}


def _drawn(group: Tensor, free: Tensor, counts: Tensor, generator: torch.Generator) -> Tensor:
    """Of the free entries of each group at random as many as `counts` says, or as many as there are: a mask."""
    which = free.nonzero()[:, 0]
    which = which[torch.randperm(len(which), generator=generator)]
    which = which[torch.argsort(group[which], stable=True)]
    sizes = torch.bincount(group[which], minlength=len(counts))
    rank = torch.arange(len(which), device=group.device) - (sizes.cumsum(0) - sizes)[group[which]]
    return torch.zeros_like(free).index_fill_(0, which[rank < counts[group[which]]], True)


def _features(acts: SparseActivations, hit: Tensor, T: int) -> int:
    """Number of (prompt, feature) among entries."""
    return len(torch.unique(acts.rows()[hit] // T * acts.n_features + acts.indices[hit]))


def _displaced(acts: SparseActivations, hit: Tensor, found: Tensor) -> int:
    """Number of places by which rows have more than were hit in them."""
    drawn, wanted = (
        torch.bincount(rows, minlength=acts.n_rows) for rows in (found // acts.n_features, acts.rows()[hit])
    )
    return int((drawn - wanted).clamp(min=0).sum())
