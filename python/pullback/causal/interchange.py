"""Interchange interventions: features of one prompt, put into another; many pairs at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pullback.causal.gradients import output_gradients
from pullback.causal.places import Supernode, spelled_out
from pullback.lens import Lens, as_lens
from pullback.lens import record as rec
from pullback.lens.tokens import check_ids
from pullback.ops import SparseActivations, decode_csr, sampled_dot
from pullback.transcoders import BatchTopK, LayeredDictionary, in_memory

Selection = Callable[[Tensor, Tensor], Tensor]
"""(pair index (n), feature id (n)) -> mask (n): which features of which pair are swapped."""


@dataclass(frozen=True)
class Swap:
    """Which features of a layer are taken from the source prompts, read and written at which positions."""

    layer: int
    base_pos: int
    source_pos: int
    select: Selection
    n_features: int | None = None
    """Size of the dictionary that the selection speaks of, if it names one."""

    @staticmethod
    def features(layer: int, pos: int, chosen: Tensor, source_pos: int | None = None) -> Swap:
        """The same features for every pair: `chosen` is a mask over the layer's features, (F) bool."""
        if chosen.ndim != 1 or chosen.dtype != torch.bool:
            raise ValueError(
                f"Swap.features: chosen must be a mask (F) of bool, got {chosen.dtype} {list(chosen.shape)}"
            )
        source = pos if source_pos is None else source_pos
        return Swap(layer, pos, source, lambda _pair, ids: chosen.to(ids.device)[ids.long()], len(chosen))

    @staticmethod
    def listed(layer: int, pos: int, pairs: Tensor, ids: Tensor, n_features: int) -> Swap:
        """Features listed pair by pair: pairs (m), ids (m)."""
        if pairs.ndim != 1 or pairs.shape != ids.shape:
            raise ValueError(
                "Swap.listed: pairs and ids must be two vectors of one length, got "
                f"{list(pairs.shape)} and {list(ids.shape)}"
            )
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < n_features:
            raise ValueError(
                f"Swap.listed: ids must lie in 0..{n_features - 1}, got {int(ids.min())}..{int(ids.max())}"
            )
        keys = pairs.long() * n_features + ids.long()
        return Swap(
            layer, pos, pos, lambda pair, f: torch.isin(pair * n_features + f.long(), keys.to(f.device)), n_features
        )

    @staticmethod
    def supernode(sets: LayeredDictionary, group: Supernode) -> list[Swap]:
        """The features of a group, the same for every pair, each at its position of both prompts.

        Raises ValueError for layers or features that the set does not have, and for slices of positions: pairs are
        swapped place by place.
        """
        chosen: dict[tuple[int, int], Tensor] = {}
        for layer, pos, feature, attention in map(spelled_out, group.features):
            if attention or isinstance(pos, slice) or layer not in sets or not 0 <= feature < sets[layer].d_sae:
                what = " of attention" if attention else ""
                raise ValueError(
                    f"Swap.supernode: ({layer}, {pos}, {feature}){what} of '{group.name}' is no feature of this set at "
                    "one position"
                )
            mask = chosen.setdefault((layer, pos), torch.zeros(sets[layer].d_sae, dtype=torch.bool))
            mask[feature] = True
        return [Swap.features(layer, pos, mask) for (layer, pos), mask in chosen.items()]


def interchange(
    model: Any,
    sets: LayeredDictionary,
    base: Tensor,
    source: Tensor,
    swaps: Sequence[Swap],
    *,
    strict: bool = True,
) -> Tensor:
    """Last-position logits (N, V) of N base prompts with features taken from N source prompts.

    At each swap's output hook, sum over selected features of (z_source - z_now) W_dec is added, z_now re-encoded in the
    patched run; everything else is computed anew. Features of a cross-layer transcoder add what they write at the
    output hooks of all layers they write to.

    Args:
        base, source: token ids (N, T) and (N, T').

    Raises:
        ValueError: shapes, layers or positions that do not fit, a feature that two swaps set at one place, token ids
            that the model cannot read, transcoders of another model.
    """
    lens = as_lens(model)
    sets = lens.fitted(sets, strict=strict)
    check_ids(lens, base, "base")
    check_ids(lens, source, "source")
    _check(sets, base, source, swaps)
    given = _source_activations(lens, sets, source, swaps)
    # Of each layer that is swapped: position, features of the source, features of the run that give way to them.
    changes: dict[int, list[tuple[int, SparseActivations, SparseActivations]]] = {}

    def read(layer: int, x: Tensor) -> None:
        changes[layer] = []
        for pos in sorted({s.base_pos for s in swaps if s.layer == layer}):
            here = [s for s in swaps if (s.layer, s.base_pos) == (layer, pos)]
            now = sets.encode(layer, x[:, pos])
            thens = [given[layer, s.source_pos] for s in here]
            _claimed_once(here, [now, *thens])
            changes[layer] += [
                (pos, _selected(then, swap.select), _selected(now, swap.select))
                for swap, then in zip(here, thens, strict=True)
            ]

    def write(layer: int, dst: int, y: Tensor) -> Tensor:
        y = y.clone()
        W_dec = sets.decoder(layer, dst)
        for pos, then, now in changes[layer]:
            y[:, pos] += (decode_csr(*in_memory(then, W_dec)) - decode_csr(*in_memory(now, W_dec))).to(y.dtype)
        return y

    edits: list[tuple[str, rec.Edit]] = []
    for layer in sorted({s.layer for s in swaps}):
        sites = lens.sites(sets, sets.targets(layer))
        edits.append((sites[layer][0], partial(read, layer)))
        edits += [(site_out, partial(write, layer, dst)) for dst, (_, site_out) in sites.items()]
    logits, _ = lens.record(base, [], edits)
    return logits[:, -1]


def _source_activations(
    lens: Lens, sets: LayeredDictionary, source: Tensor, swaps: Sequence[Swap]
) -> dict[tuple[int, int], SparseActivations]:
    """Features of the source prompts at each (layer, source position) that a swap reads, N rows each."""
    places = {(s.layer, s.source_pos) for s in swaps}
    sites = lens.sites(sets, {layer for layer, _ in places})
    _, seen = lens.record(source, [site for site, _ in sites.values()])
    return {(i, p): sets.encode(i, seen[sites[i][0]][:, p]) for i, p in places}


def _claimed_once(swaps: Sequence[Swap], acts: Sequence[SparseActivations]) -> None:
    """Raises ValueError where two swaps at one place select the same active feature of the same pair."""
    rows, ids = torch.cat([a.rows() for a in acts]), torch.cat([a.indices for a in acts])
    twice = sum(s.select(rows, ids).long() for s in swaps) > 1
    if isinstance(twice, Tensor) and bool(twice.any()):
        raise ValueError(
            f"interchange: two swaps set feature {int(ids[twice][0])} of layer {swaps[0].layer} at position "
            f"{swaps[0].base_pos}"
        )


def _selected(acts: SparseActivations, select: Selection) -> SparseActivations:
    """The entries that a selection keeps; rows stay."""
    return acts.where(select(acts.rows(), acts.indices))


def _check(sets: LayeredDictionary, base: Tensor, source: Tensor, swaps: Sequence[Swap]) -> None:
    if base.ndim != 2 or source.ndim != 2 or base.shape[0] != source.shape[0]:
        raise ValueError(
            "interchange: base (N, T) and source (N, T') need as many rows, got "
            f"{list(base.shape)} and {list(source.shape)}"
        )
    _check_layers("interchange", sets, [s.layer for s in swaps])
    for s in swaps:
        for name, pos, T in (("base", s.base_pos, base.shape[1]), ("source", s.source_pos, source.shape[1])):
            if not 0 <= pos < T:
                raise ValueError(f"interchange: {name} position {pos} is outside 0..{T - 1}")
        if s.n_features not in (None, sets[s.layer].d_sae):
            raise ValueError(
                f"interchange: a swap at layer {s.layer} selects among {s.n_features} features, but that layer has "
                f"{sets[s.layer].d_sae}"
            )


def _check_layers(caller: str, sets: LayeredDictionary, layers: Sequence[int]) -> None:
    for layer in layers:
        if layer not in sets:
            raise ValueError(f"{caller}: no transcoder for layer {layer}; the set has layers {sets.layers}")
        activation = sets[layer].activation
        if isinstance(activation, BatchTopK) and activation.threshold is None:
            raise ValueError(
                f"{caller}: the BatchTopK of layer {layer} has no threshold, so a pair's features would depend on the "
                "other pairs in the batch; calibrate one (BatchTopK(k, threshold))"
            )


def swap_scores(
    model: Any,
    sets: LayeredDictionary,
    base: Tensor,
    source: Tensor,
    target: Tensor,
    other: Tensor,
    layers: Sequence[int],
    pos: int,
    *,
    strict: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attribution of taking each feature at `pos` from the source: (z_source - z_base) <W_dec, gradient>.

    The gradient is that of logit[target] - logit[other] with respect to the MLP output, averaged over base and source
    runs (attribution patching at both ends). base, source: (N, T) of one length; target, other: (N) token ids.

    Returns:
        pair (m), layer (m), feature (m), score (m) for every feature active in either prompt.

    Raises:
        ValueError: shapes, layers or a position that do not fit, token ids that the model cannot read, transcoders of
            another model.
    """
    lens = as_lens(model)
    sets = lens.fitted(sets, strict=strict)
    check_ids(lens, base, "base")
    check_ids(lens, source, "source")
    layers = sorted(set(layers))
    _check_layers("swap_scores", sets, layers)
    if base.ndim != 2 or base.shape != source.shape or target.shape != base.shape[:1] or other.shape != base.shape[:1]:
        raise ValueError(
            "swap_scores: base and source must be (N, T), target and other (N), got "
            + ", ".join(str(list(t.shape)) for t in (base, source, target, other))
        )
    check_ids(lens, target[:, None], "target")
    check_ids(lens, other[:, None], "other")
    if not layers or not -base.shape[1] <= pos < base.shape[1]:
        raise ValueError(
            f"swap_scores: give at least one layer, and a position within the {base.shape[1]} tokens; "
            f"got {layers}, {pos}"
        )
    x_base, g_base = _inputs_and_gradients(lens, sets, base, target, other, layers)
    x_source, g_source = _inputs_and_gradients(lens, sets, source, target, other, layers)
    parts = []
    for i in layers:
        gradients = {dst: (g_base[dst][:, pos] + g_source[dst][:, pos]) / 2 for dst in sets.targets(i)}
        for x, sign in ((x_source[i], 1.0), (x_base[i], -1.0)):
            acts = sets.encode(i, x[:, pos])
            rows, ids = acts.rows(), acts.indices.long()
            read = {dst: in_memory(acts, sets.decoder(i, dst)) for dst in gradients}
            along = [sampled_dot(gradients[dst], W, own.indptr, own.indices) for dst, (own, W) in read.items()]
            effect = sign * acts.values * torch.stack(along).sum(0)
            parts.append((rows, torch.full_like(rows, i), ids, effect))
    pair, layer, feature, score = (torch.cat([p[n] for p in parts]) for n in range(4))
    # A feature active in both prompts has two entries: its score is their sum.
    stride = max(sets[i].d_sae for i in layers)
    key = (pair * lens.n_layers + layer) * stride + feature
    unique, where = key.unique(return_inverse=True)
    total = score.new_zeros(len(unique)).index_add_(0, where, score)
    return unique // (stride * lens.n_layers), unique // stride % lens.n_layers, unique % stride, total


def _inputs_and_gradients(
    lens: Lens, sets: LayeredDictionary, tokens: Tensor, target: Tensor, other: Tensor, layers: Sequence[int]
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Transcoder inputs of the layers, and d(logit[target] - logit[other]) / d(MLP output) of those they write to,
    {layer: (N, T, d)} each."""
    written = sorted({dst for layer in layers for dst in sets.targets(layer)})
    sites = lens.sites(sets, written)

    def difference(logits: Tensor) -> Tensor:
        rows = torch.arange(len(tokens))
        return logits[rows, -1, target] - logits[rows, -1, other]

    outputs = {i: site_out for i, (_, site_out) in sites.items()}
    _, gradients, seen = output_gradients(lens, tokens, outputs, difference, sites=[s for s, _ in sites.values()])
    return {i: seen[sites[i][0]] for i in layers}, gradients
