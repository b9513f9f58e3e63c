"""Which features are set, where, and to what: interventions as they are written down, checked and resolved."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pullback.attribution import FeatureTarget
from pullback.attribution.local import Dictionaries, fitted_saes
from pullback.lens import Lens
from pullback.transcoders import LayeredDictionary

Position: TypeAlias = int | slice
"""A position, negative from the end, or a slice of them; `slice(a, None)` goes on through generated tokens."""

Feature: TypeAlias = tuple[int, Position, int] | FeatureTarget
"""(layer, position, feature) of an MLP; or a `FeatureTarget`, which may be of attention."""

Place: TypeAlias = tuple[bool, int]
"""Whose features: whether of attention, and the layer."""


@dataclass(frozen=True)
class Supernode:
    """A named group of features that are set together."""

    name: str
    features: tuple[Feature, ...]

    @staticmethod
    def from_node_ids(name: str, ids: Iterable[str]) -> Supernode:
        """From node ids of graphs, files and Neuronpedia: `{layer}_{feature}_{pos}`, of attention `A{layer}_...`.

        Raises ValueError for the id of anything but a feature.
        """
        return Supernode(name, tuple(_feature_of(node_id) for node_id in ids))


def _feature_of(node_id: str) -> Feature:
    attention = node_id.startswith("A")
    parts = node_id.removeprefix("A").split("_")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise ValueError(f"a supernode holds features, '{{layer}}_{{feature}}_{{pos}}', and '{node_id}' is none")
    layer, feature, pos = map(int, parts)
    return FeatureTarget(layer, pos, feature, attention=True) if attention else (layer, pos, feature)


Intervention: TypeAlias = tuple[int, Position, int, float] | tuple[Feature, float] | tuple[Supernode, float]
"""(layer, position, feature, value after the activation function), (feature, value), or (supernode, factor on its
features)."""


@dataclass(frozen=True)
class Setting:
    """One feature, the positions it is set at, and what to: a value, or a factor on what it is in the unchanged run."""

    layer: int
    pos: Position
    feature: int
    amount: float
    relative: bool = False
    attention: bool = False


def parsed(interventions: Sequence[Intervention]) -> list[Setting]:
    """One setting per feature. Raises ValueError for what is no intervention."""
    return [setting for intervention in interventions for setting in _settings(intervention)]


def _settings(intervention: Any) -> list[Setting]:
    try:
        if isinstance(intervention[0], Supernode):
            group, factor = intervention
            return [_setting(feature, factor, relative=True) for feature in group.features]
        *feature, value = intervention
        return [_setting(feature[0] if len(feature) == 1 else feature, value)]
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(
            "intervene: an intervention is (layer, position, feature, value), three integers and a number (the "
            f"position may be a slice), or (feature, value), or (supernode, factor), got {intervention!r}"
        ) from error


def _setting(feature: Any, amount: Any, *, relative: bool = False) -> Setting:
    """Plain numbers, whether they came as such, from numpy or as tensors of one element."""
    layer, pos, number, attention = spelled_out(feature)
    where = pos if isinstance(pos, slice) else operator.index(pos)
    return Setting(operator.index(layer), where, operator.index(number), float(amount), relative, attention)


def spelled_out(feature: Feature) -> tuple[int, Position, int, bool]:
    """Layer, position, number, and whether it is of attention."""
    if isinstance(feature, FeatureTarget):
        return feature.layer, feature.position, feature.feature, feature.attention
    layer, pos, number = feature
    return layer, pos, number, False


def anchored(settings: Sequence[Setting], T: int) -> list[Setting]:
    """The settings with positions counted from the start of a prompt of T tokens, so that they mean the same places
    when tokens are appended. Raises ValueError for a position outside the prompt, or a slice that runs backwards."""

    def from_start(n: int | None) -> int | None:
        return n if n is None or n >= 0 else max(0, n + T)

    def anchor(pos: Position) -> Position:
        if isinstance(pos, slice):
            return slice(from_start(pos.start), from_start(pos.stop), _step(pos))
        return _within(pos, T)

    return [replace(s, pos=anchor(s.pos)) for s in settings]


@dataclass(frozen=True)
class Placed:
    """The features of one layer that are set, one entry per place."""

    positions: Tensor  # (n)
    ids: Tensor  # (n)
    amounts: Tensor  # (n)
    relative: Tensor  # (n) bool

    def values(self, unchanged: Tensor) -> Tensor:
        """What features become, (n), from what they are in the unchanged run, (n)."""
        amounts = self.amounts.to(unchanged)
        return torch.where(self.relative.to(unchanged.device), amounts * unchanged, amounts)


def fitted(
    lens: Lens, sets: LayeredDictionary, attention_saes: LayeredDictionary | None, *, strict: bool = True
) -> Dictionaries:
    """The dictionaries as this model is computed, checked."""
    saes = fitted_saes(lens, attention_saes, strict=strict)
    mlps = lens.fitted(sets, strict=strict)
    return (mlps,) if saes is None else (mlps, saes)


def placed(
    dictionaries: Dictionaries, T: int, settings: Sequence[Setting], *, must_cover: bool = True
) -> dict[Place, Placed]:
    """Checked settings on a prompt of T tokens, by where they are.

    Raises ValueError for layers, positions or features that do not exist, amounts that are not finite, a place that is
    set twice, and, if they `must_cover` some, a slice that covers no position.
    """
    wanted: dict[Place, dict[tuple[int, int], tuple[float, bool]]] = {}
    for s in settings:
        if s.attention and len(dictionaries) == 1:
            raise ValueError(
                f"intervene: feature {s.feature} of layer {s.layer} is of attention; give attention_saes, where they "
                "can be given"
            )
        sets = dictionaries[s.attention]
        if s.layer not in sets:
            what = "autoencoder of attention" if s.attention else "transcoder"
            raise ValueError(f"intervene: no {what} for layer {s.layer}; the set has layers {sets.layers}")
        if not 0 <= s.feature < sets[s.layer].d_sae:
            raise ValueError(
                f"intervene: feature {s.feature} is out of range; layer {s.layer} has features "
                f"0..{sets[s.layer].d_sae - 1}"
            )
        if not math.isfinite(s.amount):
            raise ValueError(
                f"intervene: the {'factor' if s.relative else 'value'} of feature {s.feature} must be finite, "
                f"got {s.amount}"
            )
        positions = _positions(s.pos, T)
        if must_cover and not positions:
            raise ValueError(f"intervene: {s.pos} covers none of the prompt's {T} tokens")
        here = wanted.setdefault((s.attention, s.layer), {})
        for pos in positions:
            if (pos, s.feature) in here:
                raise ValueError(f"intervene: layer {s.layer}, position {pos}, feature {s.feature} is set twice")
            here[pos, s.feature] = (s.amount, s.relative)
    return {place: _columns(places) for place, places in wanted.items() if places}


def _columns(places: dict[tuple[int, int], tuple[float, bool]]) -> Placed:
    positions, ids = torch.tensor(list(places)).T
    amounts, relative = zip(*places.values(), strict=True)
    return Placed(positions, ids, torch.tensor(amounts, dtype=torch.float64), torch.tensor(relative))


def _positions(pos: Position, T: int) -> Sequence[int]:
    return range(T)[slice(pos.start, pos.stop, _step(pos))] if isinstance(pos, slice) else [_within(pos, T)]


def _within(pos: int, T: int) -> int:
    if not -T <= pos < T:
        raise ValueError(f"intervene: position {pos} is outside the prompt's {T} tokens")
    return pos % T


def _step(pos: slice) -> int:
    step = 1 if pos.step is None else operator.index(pos.step)
    if step < 1:
        raise ValueError(f"intervene: the step of a slice of positions must be at least 1, got {pos}")
    return step
