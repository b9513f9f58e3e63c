"""Greedy computational paths: Algorithm 1 of Dunefsky et al., for all paths of one length at once (METHODS 1.8)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pullback.attribution import nodes as k
from pullback.attribution.local import LocalModel
from pullback.attribution.paths.filters import FeatureFilter, any_matches
from pullback.attribution.paths.nodes import HEAD, Columns, PathNodes
from pullback.attribution.paths.norms import FrozenNorms
from pullback.attribution.paths.readings import Readings
from pullback.attribution.paths.roots import Root
from pullback.attribution.paths.sources import Candidates, Sources
from pullback.attribution.paths.steps import readings_of
from pullback.attribution.pullbacks.norms import RULES

MOST_PATHS = 1 << 22  # that a search without a limit may come to at one length
WORKED_AT = 1 << 24  # contributions of heads computed at a time


@dataclass(frozen=True)
class SearchSettings:
    """Arguments of `greedy_paths` that do not depend on the prompt; it says what they mean.

    Raises ValueError for values without meaning.
    """

    num_iters: int | None = 2
    num_branches: int | None = 5
    raw: bool = True
    absolute: bool = False
    ignore_bos: bool = True
    filters: tuple[FeatureFilter, ...] = ()
    leaves: bool = False
    ln: str = "frozen"
    reference: bool = False

    def __post_init__(self) -> None:
        for name in ("num_iters", "num_branches"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"paths: {name} must be at least 1, or None for no limit; got {value}")
        if self.ln not in RULES:
            raise ValueError(f"paths: ln must be one of {', '.join(RULES)}, got {self.ln!r}")


@dataclass(frozen=True, eq=False)
class Level(Columns):
    """The last nodes of n paths of one length.

    Attributes:
        parent: (n), place of the path without its last node in the level before; of the root 0.
        contribution: (n), of the last node to the root along the path; capped where that is asked.
        activation: (n), of a feature; the probability of a logit; 1 for anything else.
        cap: (n), what contributions of longer paths are capped at.
    """

    parent: Tensor
    kind: Tensor
    layer: Tensor
    index: Tensor
    pos: Tensor
    contribution: Tensor
    activation: Tensor
    cap: Tensor
    readings: Readings

    @property
    def nodes(self) -> PathNodes:
        return PathNodes(self.kind, self.layer, self.index, self.pos)


def first_level(root: Root, settings: SearchSettings) -> Level:
    feature = bool(root.nodes.kind == k.FEATURE)
    contribution = root.activation if settings.reference and feature else root.value
    nothing = torch.zeros_like(root.nodes.kind)
    return Level(
        parent=nothing,
        kind=root.nodes.kind,
        layer=root.nodes.layer,
        index=root.nodes.index,
        pos=root.nodes.pos,
        contribution=contribution,
        activation=root.activation,
        cap=root.activation if feature else torch.full_like(root.value, math.inf),
        readings=root.reading,
    )


def search(
    local: LocalModel, norms: FrozenNorms, root: Root, settings: SearchSettings, ignored: list[int]
) -> list[Level]:
    """The paths of every length, the root's own first. Raises ValueError where there are too many."""
    sources = Sources(local, norms, leaves=settings.leaves, together=settings.reference, ignored=ignored)
    levels = [first_level(root, settings)]
    while settings.num_iters is None or len(levels) <= settings.num_iters:
        steps = _best_steps(sources, levels[-1], settings)
        if steps is None:
            break
        levels.append(_extended(local, norms, levels[-1], steps, settings))
    return levels


def _extended(
    local: LocalModel, norms: FrozenNorms, before: Level, steps: Candidates, settings: SearchSettings
) -> Level:
    """The paths that these steps make longer."""
    past = settings.num_branches is None
    readings = readings_of(local, norms, before.readings, steps, past_first_attention=past)
    bound = _bound(before.cap[steps.owner], steps.kind, steps.activation, settings)
    contribution = _counted(steps.contribution, bound, settings)
    cap = torch.where(steps.kind == k.FEATURE, contribution, bound) if settings.reference else bound
    nodes = (steps.kind, steps.layer, steps.index, steps.pos)
    return Level(steps.owner, *nodes, contribution, steps.activation, cap, readings)


def _best_steps(sources: Sources, before: Level, settings: SearchSettings) -> Candidates | None:
    """The steps that make the best paths one node longer; None where every path has come to its end."""
    going_on = (before.readings.below > before.readings.first).nonzero()[:, 0]
    found: list[Candidates] = []
    for which in going_on.split(max(1, WORKED_AT // (sources.n_heads * sources.local.n_pos))):
        found += _candidates(sources, before[which], which, settings)
        if sum(map(len, found)) > MOST_PATHS:
            raise ValueError(
                f"paths: there are more than {MOST_PATHS:,} paths of {len(going_on)} shorter ones; give num_branches, "
                "or fewer num_iters"
            )
    if not found:
        return None
    steps = Candidates.joined(found)
    bound = _bound(before.cap[steps.owner], steps.kind, steps.activation, settings)
    score = _score(_counted(steps.contribution, bound, settings), settings)
    best = torch.argsort(score, descending=True, stable=True)[: settings.num_branches]
    return steps[best] if len(best) else None


def _candidates(sources: Sources, paths: Level, places: Tensor, settings: SearchSettings) -> list[Candidates]:
    """Of each kind and layer, the best of each path; the paths stand at these places of their level."""
    found: list[Candidates] = []
    for block in sources.blocks(paths.readings):
        bound = _bound(paths.cap[block.owner, None], block.kind, block.activation, settings)
        score = _score(_counted(block.contribution, bound, settings), settings)
        wanted = any_matches(settings.filters, block.kind, block.layer, block.index, block.pos)
        if wanted is not None and not settings.reference:
            score = score.masked_fill(~wanted, -math.inf)
        picked = block.picked(score, _most(block.kind, sources.n_heads, settings))
        if settings.reference:
            wanted = any_matches(settings.filters, picked.kind, picked.layer, picked.index, picked.pos)
            picked = picked if wanted is None else picked[wanted]
        if block.kind == k.OWN:
            picked = replace(picked, layer=paths.layer[picked.owner], index=paths.index[picked.owner])
        found.append(replace(picked, owner=places[picked.owner]))
    return found


def _most(kind: int, n_heads: int, settings: SearchSettings) -> int | None:
    """How many sources of one layer are candidates of one path."""
    if settings.reference and kind == HEAD and settings.num_branches is not None:
        return min(settings.num_branches, n_heads)
    return settings.num_branches


def _bound(cap: Tensor, kind: Tensor | int, activation: Tensor, settings: SearchSettings) -> Tensor:
    """The smallest activation along a path, its last node's included. (The reference code takes what the last feature
    before it contributes, which is what `cap` holds then.)"""
    if settings.reference:
        return cap
    is_feature = torch.as_tensor(kind == k.FEATURE, device=cap.device)
    return torch.where(is_feature, torch.minimum(cap, activation), cap)


def _counted(contribution: Tensor, bound: Tensor, settings: SearchSettings) -> Tensor:
    if settings.raw:
        return contribution
    least = torch.minimum(contribution, bound)
    return least if settings.reference else torch.maximum(least, -bound)


def _score(contribution: Tensor, settings: SearchSettings) -> Tensor:
    """What ranks; -inf for what contributes nothing."""
    size = contribution.abs() if settings.absolute else contribution
    return size.masked_fill(contribution == 0, -math.inf)
