"""Set features to values and see what the model says then."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pullback.lens import Trace, as_lens, must_be_transcoders, trace
from pullback.lens import record as rec
from pullback.lens.freeze import frozen_run
from pullback.transcoders import LayeredDictionary

Intervention = tuple[int, int, int, float]
"""(layer, position, feature, value after the activation function)."""


@dataclass(frozen=True)
class Intervened:
    """A forward pass under intervention: logits (T, V), and what each transcoder then read, {layer: (T, d_in)}."""

    logits: Tensor
    inputs: dict[int, Tensor]


def intervene(
    model: Any,
    sets: LayeredDictionary,
    prompt: str | Sequence[int] | Tensor,
    interventions: Sequence[Intervention],
    *,
    freeze: str | None = "attention",
    strict: bool = True,
) -> Tensor:
    """Logits (T, V) of the model with features set to values.

    At each layer's output hook, (value - z) W_dec is added, z being what the feature would have been in this run; the
    transcoder's error stays. Later layers run on with it. A feature of a cross-layer transcoder adds what it writes at
    the output hook of every layer it writes to, whose MLP runs on, too, unless it is frozen.

    Args:
        interventions: (layer, position, feature, value), the value after the activation function; positions may be
            negative.
        freeze: "attention" (default) holds attention patterns at the unchanged run's; "all" holds patterns, norm scales
            and MLP outputs, so that only direct effects remain; None holds nothing.
        strict: False accepts transcoders of a fine-tuned sibling.

    Raises:
        ValueError: layer, position or feature out of range, a value that is not finite, transcoders of another model,
            autoencoders under freeze="all", or a freeze that this model does not keep.
    """
    return run_interventions(model, sets, prompt, interventions, freeze=freeze, strict=strict).logits


def run_interventions(
    model: Any,
    sets: LayeredDictionary,
    prompt: str | Sequence[int] | Tensor,
    interventions: Sequence[Intervention],
    *,
    freeze: str | None = "attention",
    strict: bool = True,
) -> Intervened:
    """As `intervene`, with the inputs that every transcoder of the set read."""
    lens = as_lens(model)
    tokens = lens.to_tokens(prompt)
    sets = lens.fitted(sets, strict=strict)
    if freeze == "all":
        must_be_transcoders(sets, "freeze='all'")
    wanted = _by_layer(sets, len(tokens), interventions)
    base = trace(lens, tokens)
    edits: list[tuple[str, rec.Edit]] = []
    for layer, changes in wanted.items():
        change = _Change(sets, base, layer, changes, frozen=freeze == "all")
        sites = lens.sites(sets, sets.targets(layer))
        edits.append((sites[layer][0], change.read))
        edits += [(site_out, partial(change.write, dst)) for dst, (_, site_out) in sites.items()]
    sites = {i: site_in for i, (site_in, _) in lens.sites(sets, sets.layers).items()}
    logits, seen = frozen_run(lens, tokens, base, freeze, edits, list(sites.values()))
    return Intervened(logits, {i: seen[s] for i, s in sites.items()})


class _Change:
    """The features of one layer that are set: (value - z), and what it adds to the layers they write to."""

    def __init__(
        self, sets: LayeredDictionary, base: Trace, layer: int, changes: list[tuple[int, int, float]], frozen: bool
    ) -> None:
        self.sets, self.layer, like = sets, layer, base.embed
        # Where all is frozen, z is the unchanged run's: the encoder is a nonlinearity too.
        self.held = base.layers[layer].read(sets.hook_in(layer)) if frozen else None
        self.positions, self.ids = torch.tensor([change[:2] for change in changes], device=like.device).T
        self.values = torch.tensor([v for _, _, v in changes], device=like.device, dtype=sets[layer].dtype)
        self.delta = torch.zeros_like(self.values)

    def read(self, x: Tensor) -> None:
        """x (1, T, d), this layer's input."""
        x = x[0] if self.held is None else self.held
        self.delta = self.values - _activations(self.sets, self.layer, x, self.positions, self.ids)

    def write(self, dst: int, y: Tensor) -> Tensor:
        """y (1, T, d), the MLP output of layer dst."""
        added = self.delta[:, None] * self.sets.decoder_rows(self.layer, self.ids, dst)
        return y.index_add(1, self.positions, added.to(y.dtype)[None])


def _activations(sets: LayeredDictionary, layer: int, x: Tensor, positions: Tensor, ids: Tensor) -> Tensor:
    """z of features `ids` (n) at `positions` (n), from the inputs x (T, d)."""
    acts = sets.encode(layer, x)
    now = acts.values.new_zeros(len(ids))
    for n, (p, f) in enumerate(zip(positions.tolist(), ids.tolist(), strict=True)):
        span = slice(int(acts.indptr[p]), int(acts.indptr[p + 1]))
        now[n] = acts.values[span][acts.indices[span] == f].sum()
    return now


def _parts(intervention: Intervention) -> tuple[int, int, int, float]:
    """Plain numbers, whether they came as such, from numpy or as tensors of one element."""
    try:
        layer, pos, feature, value = intervention
        return operator.index(layer), operator.index(pos), operator.index(feature), float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "intervene: an intervention is (layer, position, feature, value), three integers and a number, "
            f"got {intervention!r}"
        ) from error


def _by_layer(
    sets: LayeredDictionary, T: int, interventions: Sequence[Intervention]
) -> dict[int, list[tuple[int, int, float]]]:
    """Checked interventions, {layer: [(position, feature, value)]}."""
    wanted: dict[int, dict[tuple[int, int], float]] = {}
    for intervention in interventions:
        layer, pos, feature, value = _parts(intervention)
        if layer not in sets:
            raise ValueError(f"intervene: no transcoder for layer {layer}; the set has layers {sets.layers}")
        if not -T <= pos < T:
            raise ValueError(f"intervene: position {pos} is outside the prompt's {T} tokens")
        if not 0 <= feature < sets[layer].d_sae:
            raise ValueError(
                f"intervene: feature {feature} is out of range; layer {layer} has features 0..{sets[layer].d_sae - 1}"
            )
        if not math.isfinite(value):
            raise ValueError(f"intervene: the value of feature {feature} must be finite, got {value}")
        place = (pos % T, feature)
        if place in wanted.setdefault(layer, {}):
            raise ValueError(f"intervene: layer {layer}, position {place[0]}, feature {feature} is set twice")
        wanted[layer][place] = value
    return {layer: [(p, f, v) for (p, f), v in places.items()] for layer, places in wanted.items()}
