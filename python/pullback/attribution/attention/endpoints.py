"""The two ends of an edge, by the names of its nodes: what a source writes to the stream, and how a target reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pullback.attribution.local import LocalModel
from pullback.attribution.nodes import BIAS_KINDS

EMBED = 0


def behind_attention(layer: int) -> int:
    """Places where the stream is written to, in order: `EMBED`, and two for each layer."""
    return 2 * layer + 1


def behind_mlp(layer: int) -> int:
    return 2 * layer + 2


@dataclass(frozen=True)
class Sources:
    """n vectors at positions (n) of the stream; `writes` has (n, d) for every place that one of them writes to."""

    pos: Tensor
    writes: dict[int, Tensor]


@dataclass(frozen=True)
class Reads:
    """m vectors (m, d) that read the stream at positions (m): what the MLP of `layer` (m) reads, or, at n_layers, what
    ln_final does; or, `at_attention` (m), what the layer's attention writes."""

    layer: Tensor
    pos: Tensor
    vectors: Tensor
    at_attention: Tensor


def sources_of(local: LocalModel, names: Sequence[str]) -> Sources:
    """What the sources write, activations included. Raises ValueError for a name that is no source of this prompt."""
    like = local.trace.embed
    pos, writes = [], {}
    for row, name in enumerate(names):
        p, written = _written(local, name)
        pos.append(p)
        for place, vector in written.items():
            writes.setdefault(place, like.new_zeros(len(names), like.shape[1]))[row] = vector
    return Sources(torch.tensor(pos, dtype=torch.long, device=like.device), writes)


Read: TypeAlias = tuple[int, int, Tensor]
"""Layer, position and vector of one target, as of `Reads`."""


def reads_of(local: LocalModel, names: Sequence[str], known: Mapping[str, Read] | None = None) -> Reads:
    """How the targets read; of directions, whose vectors no name tells, as `known` has it.

    Raises ValueError for a name that is neither known, nor a feature, active or not, nor a logit.
    """
    known = known or {}
    reads = (known[name] if name in known else _read(local, name) for name in names)
    layers, positions, vectors = zip(*reads, strict=True)

    def column(values: Sequence[Any]) -> Tensor:
        return torch.tensor(values, device=local.trace.embed.device)

    at_attention = column([name.startswith("A") for name in names])
    return Reads(column(layers), column(positions), torch.stack(vectors), at_attention)


def _written(local: LocalModel, name: str) -> tuple[int, dict[int, Tensor]]:
    t, words = local.trace, name.split("_")
    try:
        if words[0] == "P":
            pos = _position(local, words[1])
            return pos, {EMBED: _present(t.pos_embed, name, "position vectors")[pos]}
        pos = _position(local, words[-1])
        if words[0] == "E":
            if int(words[1]) != int(t.tokens[pos]):
                raise ValueError(f"'{name}': the token at position {pos} is {int(t.tokens[pos])}")
            return pos, {EMBED: t.embed[pos]}
        layer = _layer(local, words[0].removeprefix("A"))
        if words[0].startswith("A"):
            return pos, {behind_attention(layer): _by_attention(local, layer, pos, int(words[1]))}
        if words[1] == "bias" and words[2] in BIAS_KINDS:
            if words[2] == "attn":
                return pos, {behind_attention(layer): local.attn_bias[layer][pos]}
            return pos, {behind_mlp(layer): _present(local.mlp_bias.get(layer), name, "transcoder")[pos]}
        feature = int(words[1])
    except (IndexError, ValueError) as error:
        raise ValueError(f"head loadings: '{name}' is no source on this prompt ({error})") from error
    if feature == -1:
        return pos, {behind_mlp(layer): local.errors[layer][pos]}
    z = _activation(local, layer, pos, feature)
    return pos, {
        behind_mlp(to): z * local.sets.decoder_rows(layer, [feature], to)[0] for to in local.sets.targets(layer)
    }


def _read(local: LocalModel, name: str) -> Read:
    t = local.trace
    try:
        layer, feature, pos = (int(word) for word in name.removeprefix("A").split("_"))
        _position(local, str(pos))
    except ValueError as error:
        raise ValueError(f"head loadings: '{name}' is no feature or logit on this prompt ({error})") from error
    if name.startswith("A"):
        saes = local.attention.saes
        if saes is None or layer not in saes or not 0 <= feature < saes[layer].d_sae:
            raise ValueError(f"head loadings: '{name}' is no feature of autoencoders of attention, if there are any")
        return layer, pos, saes.encoder_rows(layer, [feature])[0]
    at = torch.tensor([pos], device=t.embed.device)
    if layer == local.n_layers + 1:
        direction = (t.W_U[:, feature] - t.W_U.mean(1))[None]
        return local.n_layers, pos, t.ln_final.pullback(direction, t.final_scale[at])[0]
    if layer not in local.sets or not 0 <= feature < local.sets[layer].d_sae:
        raise ValueError(f"head loadings: '{name}' is no feature of the set, which has layers {local.sets.layers}")
    row = local.sets.encoder_rows(layer, [feature])
    return layer, pos, t.layers[layer].read_pullback(local.sets.hook_in(layer), row, at)[0]


def _by_attention(local: LocalModel, layer: int, pos: int, feature: int) -> Tensor:
    """What a feature of attention writes, or the error there for feature -1."""
    if feature == -1:
        return _present(local.attention.errors.get(layer), f"A{layer}_-1_{pos}", "autoencoders of attention")[pos]
    z = _activation(local, layer, pos, feature, "attn_features")
    return z * local.attention.sets.decoder_rows(layer, [feature], layer)[0]


def _activation(local: LocalModel, layer: int, pos: int, feature: int, kind: str = "features") -> Tensor:
    if (kind, layer) not in local.active:
        layers = [own for of_kind, own in local.active if of_kind == kind]
        raise ValueError(f"head loadings: there are no such features of layer {layer}; there are of layers {layers}")
    indices, values = local.active[kind, layer].row(pos)
    hit = (indices == feature).nonzero()
    if not len(hit):
        raise ValueError(f"head loadings: feature {feature} of layer {layer} is not active at position {pos}")
    return values[hit[0, 0]]


def _position(local: LocalModel, word: str) -> int:
    if not 0 <= int(word) < local.n_pos:
        raise ValueError(f"positions are 0..{local.n_pos - 1}")
    return int(word)


def _layer(local: LocalModel, word: str) -> int:
    if not 0 <= int(word) < local.n_layers:
        raise ValueError(f"layers are 0..{local.n_layers - 1}")
    return int(word)


def _present(value: Tensor | None, name: str, what: str) -> Tensor:
    if value is None:
        raise ValueError(f"there are no {what} for '{name}'")
    return value
