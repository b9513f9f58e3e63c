"""Set features to values and see what the model says then."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pullback.attribution.local import Dictionaries
from pullback.causal.places import Intervention, Place, Placed, fitted, parsed, placed
from pullback.lens import Lens, Trace, as_lens, must_be_transcoders, trace
from pullback.lens import record as rec
from pullback.lens.freeze import Freeze, frozen_run, put
from pullback.ops import SparseActivations
from pullback.transcoders import LayeredDictionary


@dataclass(frozen=True)
class Intervened:
    """A forward pass under intervention: logits (T, V), and what each transcoder then read, {layer: (T, d_in)}.

    attention: the same of autoencoders of attention outputs, before anything was held or set there.
    """

    logits: Tensor
    inputs: dict[int, Tensor]
    attention: dict[int, Tensor] = field(default_factory=dict)


def intervene(
    model: Any,
    sets: LayeredDictionary,
    prompt: str | Sequence[int] | Tensor,
    interventions: Sequence[Intervention],
    *,
    freeze: str | None = "attention",
    constrained_layers: Iterable[int] | None = None,
    attention_saes: LayeredDictionary | None = None,
    strict: bool = True,
) -> Tensor:
    """Logits (T, V) of the model with features set to values.

    At each layer's output hook, (value - z) W_dec is added, z being what the feature would have been in this run; the
    transcoder's error stays. Later layers run on with it. A feature of a cross-layer transcoder adds what it writes at
    the output hook of every layer it writes to, whose MLP runs on, too, unless it is frozen.

    Args:
        interventions: (layer, position, feature, value), the value after the activation function; (`FeatureTarget`,
            value), which may be of attention; or (supernode, factor), which sets its features to that factor times what
            they are in the unchanged run. Positions may be negative, or slices.
        freeze: "attention" (default) holds attention patterns at the unchanged run's; "all" holds patterns, norm scales
            and MLP outputs but for a transcoder's skip path, so that only direct effects remain, which a graph's edges
            are; None holds nothing.
        constrained_layers: layers held whole at the unchanged run (patterns, norm scales, MLP outputs), so that within
            them nothing changes but what set features write; the others follow `freeze`. `range(n)` is circuit-tracer's
            constrained patching up to layer n - 1, `range(n_layers)` is freeze="all"; None: iterative patching.
        attention_saes: autoencoders of attention outputs, whose features may be set too. Where they are, a layer held
            whole has its attention output held as well: it is features and errors there, as an MLP's is.
        strict: False accepts transcoders of a fine-tuned sibling.

    Raises:
        ValueError: layer, position or feature out of range, a value that is not finite, transcoders of another model,
            autoencoders in constrained layers, or a freeze that this model does not keep.
    """
    return run_interventions(
        model,
        sets,
        prompt,
        interventions,
        freeze=freeze,
        constrained_layers=constrained_layers,
        attention_saes=attention_saes,
        strict=strict,
    ).logits


def run_interventions(
    model: Any,
    sets: LayeredDictionary,
    prompt: str | Sequence[int] | Tensor,
    interventions: Sequence[Intervention],
    *,
    freeze: str | None = "attention",
    constrained_layers: Iterable[int] | None = None,
    attention_saes: LayeredDictionary | None = None,
    strict: bool = True,
) -> Intervened:
    """As `intervene`, with the inputs that every dictionary read."""
    lens = as_lens(model)
    tokens = lens.to_tokens(prompt)
    dictionaries = fitted(lens, sets, attention_saes, strict=strict)
    hold = held(lens, dictionaries, freeze, constrained_layers)
    wanted = placed(dictionaries, len(tokens), parsed(interventions))
    return run_from(lens, dictionaries, trace(lens, tokens), wanted, hold)


def held(
    lens: Lens, dictionaries: Dictionaries, freeze: str | None, constrained_layers: Iterable[int] | None
) -> Freeze:
    """The freeze that these arguments ask for. Raises ValueError where this set or model cannot have it."""
    hold = Freeze.of(lens.n_layers, freeze, constrained_layers or ())
    if hold.whole:
        must_be_transcoders(dictionaries[0], "freeze='all'" if freeze == "all" else "constrained patching")
    return hold


def run_from(
    lens: Lens, dictionaries: Dictionaries, base: Trace, wanted: dict[Place, Placed], hold: Freeze
) -> Intervened:
    """One pass under intervention from the unchanged run `base`; dictionaries as `fitted` gives them."""
    edits = _attended(dictionaries, base, hold)
    for (attention, layer), places in wanted.items():
        sets = dictionaries[attention]
        change = _Change(sets, base, layer, places, frozen=layer in hold.whole)
        sites = lens.sites(sets, sets.targets(layer))
        edits.append((sites[layer][0], change.read))
        edits += [(site_out, partial(change.write, dst)) for dst, (_, site_out) in sites.items()]
    edits += _skips(lens, dictionaries[0], base, hold)
    read = [{i: site_in for i, (site_in, _) in lens.sites(sets, sets.layers).items()} for sets in dictionaries]
    logits, seen = frozen_run(lens, base.tokens, base, hold, edits, [site for sites in read for site in sites.values()])
    return Intervened(logits, *({i: seen[site] for i, site in sites.items()} for sites in read))


def _attended(dictionaries: Dictionaries, base: Trace, hold: Freeze) -> list[tuple[str, rec.Edit]]:
    """Of layers held whole, what attention writes is held where autoencoders stand in for it; what they read is not."""
    layers = [i for sets in dictionaries[1:] for i in sets.layers if i in hold.whole]
    return [(f"blocks.{i}.hook_attn_out", put(base.layers[i].attn_out)) for i in layers]


def _skips(lens: Lens, sets: LayeredDictionary, base: Trace, hold: Freeze) -> list[tuple[str, rec.Edit]]:
    """A skip path is linear, so nothing holds it: what changes in the input of a layer held whole goes through."""

    def moved(W_skip: Tensor, unchanged: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, y: y + (x - unchanged) @ W_skip.T

    skips = {i: W_skip for i in sets.layers if i in hold.whole and (W_skip := sets.skip(i)) is not None}
    fns = {i: moved(W_skip, unchanged_input(sets, base, i)) for i, W_skip in skips.items()}
    return rec.patch_edits(fns, lens.sites(sets, fns))


class _Change:
    """The features of one layer that are set: (value - z), and what it adds to the layers they write to."""

    def __init__(self, sets: LayeredDictionary, base: Trace, layer: int, places: Placed, frozen: bool) -> None:
        self.sets, self.layer, device = sets, layer, base.embed.device
        self.positions, self.ids = places.positions.to(device), places.ids.to(device)
        unchanged = self._activations(unchanged_input(sets, base, layer))
        self.values = places.values(unchanged)
        # Where the layer is frozen, z is the unchanged run's: the encoder is a nonlinearity too.
        self.held = unchanged if frozen else None
        self.delta = torch.zeros_like(self.values)

    def _activations(self, x: Tensor) -> Tensor:
        return values_at(self.sets.encode(self.layer, x), self.positions, self.ids)

    def read(self, x: Tensor) -> None:
        """x (1, T, d), this layer's input."""
        self.delta = self.values - (self._activations(x[0]) if self.held is None else self.held)

    def write(self, dst: int, y: Tensor) -> Tensor:
        """y (1, T, d), the MLP output of layer dst."""
        added = self.delta[:, None] * self.sets.decoder_rows(self.layer, self.ids, dst)
        return y.index_add(1, self.positions, added.to(y.dtype)[None])


def unchanged_input(sets: LayeredDictionary, base: Trace, layer: int) -> Tensor:
    """What the dictionary of a layer reads in the unchanged run, (T, d)."""
    at, site = base.layers[layer], sets.hook_in(layer)
    if site != sets.hook_out(layer):
        return at.read(site)
    return at.attn_out if site == "hook_attn_out" else at.mlp_out  # an autoencoder reads the output it stands in for


def values_at(acts: SparseActivations, rows: Tensor, ids: Tensor) -> Tensor:
    """Activations of features `ids` (n) in rows (n): 0 where one is not active."""
    if not acts.nnz:
        return acts.values.new_zeros(len(ids))
    keys = acts.rows() * acts.n_features + acts.indices  # ascending
    wanted = rows * acts.n_features + ids.long()
    at = torch.searchsorted(keys, wanted).clamp(max=acts.nnz - 1)
    return torch.where(keys[at] == wanted, acts.values[at], 0)
