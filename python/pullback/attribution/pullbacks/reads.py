"""What is pulled back: vectors that read one place of the residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor

from pullback.attribution import targets as at
from pullback.attribution.asked import (
    Asked,
    DirectionTarget,
    FeatureTarget,
    LogitDifference,
    LogitTarget,
    Target,
    as_targets,
)
from pullback.attribution.reader import place_of, spelled, terms, token_id
from pullback.attribution.weights.wiring import Wiring
from pullback.lens import Lens, Norm
from pullback.lens.depth import at_mlp, before_block
from pullback.lens.weights import NO_NORM

FeatureIds: TypeAlias = int | Sequence[int] | Tensor | None
Wanted: TypeAlias = tuple[int, FeatureIds] | Asked
"""(layer, feature ids or None for all), or what `attribute` takes as attribution_targets."""

NOTHING = Norm(NO_NORM, None, None)


@dataclass(frozen=True, eq=False)
class Reads:
    """r vectors, all read at one place."""

    vectors: Tensor  # (r, d), behind the norm
    norm: Norm  # between the stream and where they are read
    depth: int  # of the stream, see `lens.depth`
    labels: list[str]  # r
    positions: list[int | None]  # r, as asked

    def __len__(self) -> int:
        return len(self.labels)


def reads(wiring: Wiring, wanted: Wanted) -> Reads:
    """Raises ValueError for what the model or its transcoders do not have, and for targets read at several places."""
    if is_features(wanted):
        layer, features = wanted
        ids = wiring.ids(layer, features)
        labels = [f"{layer}_{i}" for i in ids.tolist()]
        rows = wiring.sets.encoder_rows(layer, ids)
        return Reads(rows, wiring.read_norm(layer), at_mlp(layer), labels, [None] * len(ids))
    if wanted is None:
        raise ValueError(
            "pullback: name a target: (layer, feature ids), a token, or a target as `attribute` takes them"
        )
    found = [_read(wiring, target) for target in as_targets(wanted)]
    if len({(one.depth, one.norm.kind, one.norm.w is None) for one in found}) > 1:
        raise ValueError(
            "pullback: the targets of one call are read at one place; these are features of different layers, or "
            "features and logits. Ask for each place in a call of its own"
        )
    return Reads(
        torch.cat([one.vectors for one in found]),
        found[0].norm,
        found[0].depth,
        [label for one in found for label in one.labels],
        [position for one in found for position in one.positions],
    )


def is_features(wanted: Any) -> TypeGuard[tuple[int, FeatureIds]]:
    """(layer, ids): a pair of which the first is a layer number. Tokens come in lists."""
    if not isinstance(wanted, tuple) or len(wanted) != 2:
        return False
    return isinstance(wanted[0], Integral) and not isinstance(wanted[1], str | Target)


def _read(wiring: Wiring, target: Target) -> Reads:
    lens = wiring.lens
    if isinstance(target, FeatureTarget):
        if target.attention:
            raise ValueError(f"pullback: {target!r}: features of attention outputs can be sources, not targets")
        one = reads(wiring, (target.layer, [target.feature]))
        return Reads(one.vectors, one.norm, one.depth, one.labels, [target.position])
    if isinstance(target, LogitTarget):
        token = token_id(lens, target.token)
        label = lens.to_str_tokens(torch.tensor([token]))[0]
        return _logits(lens, [token], [1.0], label, target.position)
    if isinstance(target, LogitDifference):
        ids, coefficients = terms(lens, target)
        return _logits(lens, ids, coefficients, target.label or spelled(lens, ids, coefficients), target.position)
    return _direction(wiring, target)


def _logits(lens: Lens, ids: list[int], coefficients: list[float], label: str, position: int | None) -> Reads:
    W_U = lens.W_U.to(lens.compute_dtype)
    direction = (W_U[:, ids] - W_U.mean(1, keepdim=True)) @ W_U.new_tensor(coefficients)
    return Reads(direction[None], final_norm(lens), before_block(lens.n_layers), [label], [position])


def _direction(wiring: Wiring, target: DirectionTarget) -> Reads:
    lens = wiring.lens
    vector = torch.as_tensor(target.vector).detach().to(lens.device, lens.compute_dtype)
    if vector.shape != (lens.d_model,) or not bool(torch.isfinite(vector).all()):
        raise ValueError(f"pullback: a direction must be [{lens.d_model}] and finite, got {list(vector.shape)}")
    layer, site = place_of(lens, target.site)
    norm, depth = NOTHING, before_block(layer)
    if site == at.FINAL:
        norm = final_norm(lens)
    elif site != at.BEFORE_BLOCK:
        depth = at_mlp(layer)
        ln2 = wiring.layer(layer).ln2
        norm = {at.MLP_STREAM: NOTHING, at.NORMALIZED: Norm(ln2.kind, None, None), at.MLP_INPUT: ln2}[site]
    return Reads(vector[None], norm, depth, [target.label or f"direction at {target.site}"], [target.position])


def final_norm(lens: Lens) -> Norm:
    return lens.ln_final.to(lens.compute_dtype, lens.device)
