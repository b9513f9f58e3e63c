"""The features that a study may ablate: of MLP transcoders, of autoencoders of attention outputs, or of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback.causal.gradients import output_gradients
from pullback.lens import Lens, as_lens
from pullback.lens import record as rec
from pullback.ops import SparseActivations, decode_csr, sampled_dot
from pullback.studies.prompts import Prompts
from pullback.transcoders import LayeredDictionary, in_memory

CHUNK = 64

Drop = Callable[["Site", SparseActivations], Tensor]
"""Which entries of a site's activations, rows prompt by prompt, are ablated: (nnz) bool."""


@dataclass(frozen=True, eq=False)
class Site:
    """Features of one layer of one dictionary; `start` is where its ids stand among those of all sites."""

    kind: str
    layer: int
    sets: LayeredDictionary
    read: str
    write: str
    start: int

    def encode(self, x: Tensor) -> SparseActivations:
        return self.sets.encode(self.layer, x)

    def decode(self, acts: SparseActivations) -> Tensor:
        return decode_csr(*in_memory(acts, self.sets.decoder(self.layer, self.layer)))


class Dictionaries:
    """Features of several dictionaries of one model under one numbering.

    Args:
        given: {kind: dictionary}, each feature writing to its own layer.

    Raises:
        ValueError: dictionaries of another model, or cross-layer ones.
    """

    def __init__(self, model: Any, given: Mapping[str, LayeredDictionary]) -> None:
        self.lens: Lens = as_lens(model)
        self.sites: list[Site] = []
        self.n = 0
        for kind, sets in given.items():
            fitted = self.lens.fitted(sets)
            for layer, (read, write) in self.lens.sites(fitted, fitted.layers).items():
                if fitted.targets(layer) != [layer]:
                    raise ValueError("study: features must write to their own layer; cross-layer transcoders do not")
                self.sites.append(Site(kind, layer, fitted, read, write, self.n))
                self.n += fitted[layer].d_sae

    def place(self, feature: int) -> tuple[Site, int]:
        """The site of a feature and its id there."""
        site = next(s for s in reversed(self.sites) if s.start <= feature)
        return site, feature - site.start

    def edits(self, drop: Drop, seen: dict[int, SparseActivations] | None = None) -> list[tuple[str, rec.Edit]]:
        """Edits of a pass in which entries of features write nothing: each site's output loses their decoder rows,
        and its error stays. `seen` takes what every site encodes, by its start."""

        def without(site: Site) -> Callable[[Tensor, Tensor], Tensor]:
            def write(x: Tensor, y: Tensor) -> Tensor:
                acts = site.encode(x.detach())
                if seen is not None:
                    seen[site.start] = acts
                return y - site.decode(acts.where(drop(site, acts))).view_as(y)

            return write

        sites = {site.start: (site.read, site.write) for site in self.sites}
        return rec.patch_edits({site.start: without(site) for site in self.sites}, sites)

    def encoded(self, tokens: Tensor) -> dict[int, SparseActivations]:
        """What every site encodes in the unchanged run, by its start; rows prompt by prompt."""
        _, seen = self.lens.record(tokens, [site.read for site in self.sites])
        return {site.start: site.encode(seen[site.read]) for site in self.sites}

    def ablated_margins(self, prompts: Prompts, drop: Drop) -> Tensor:
        """Margins (N) with entries ablated; patterns, norms and all later features run on."""
        return prompts.margins(self.lens.record(prompts.tokens, [], self.edits(drop))[0])

    def effects(self, prompts: Prompts, groups: Tensor, chosen: Tensor) -> Tensor:
        """What the margin would lose, to first order, without each feature, in a run where those `chosen` (K, n) for a
        prompt's group (N) are ablated already: (K, n), the sum over a group's prompts and their positions."""
        total = torch.zeros(chosen.shape)
        for first in range(0, len(prompts), CHUNK):
            rows = slice(first, first + CHUNK)
            self._add_effects(prompts[rows], groups[rows], chosen, total)
        return total

    def _add_effects(self, prompts: Prompts, groups: Tensor, chosen: Tensor, total: Tensor) -> None:
        seen: dict[int, SparseActivations] = {}
        outputs = {site.start: site.write for site in self.sites}
        T = prompts.tokens.shape[1]
        edits = self.edits(by_group(groups, T, chosen), seen)
        _, gradients, _ = output_gradients(self.lens, prompts.tokens, outputs, prompts.margins, edits=edits)
        for site in self.sites:
            own, W_dec = in_memory(seen[site.start], site.sets.decoder(site.layer, site.layer))
            along = sampled_dot(gradients[site.start].flatten(0, 1), W_dec, own.indptr, own.indices)
            acts = seen[site.start]
            where = groups[acts.rows() // T] * self.n + site.start + acts.indices.long()
            total.view(-1).index_add_(0, where, (acts.values * along).to(total))


def places(acts: SparseActivations) -> Tensor:
    """Row and feature of every entry as one number, (nnz)."""
    return acts.rows() * acts.n_features + acts.indices


def listed(chosen: Mapping[int, Tensor]) -> Drop:
    """Ablates chosen places, by the start of their site, where something is active."""

    def drop(site: Site, acts: SparseActivations) -> Tensor:
        return torch.isin(places(acts), chosen[site.start])

    return drop


def by_group(groups: Tensor, T: int, chosen: Tensor) -> Drop:
    """Ablates, wherever they are active, the features chosen (K, n) for the group (N) of each prompt of T tokens."""

    def drop(site: Site, acts: SparseActivations) -> Tensor:
        return chosen[groups[acts.rows() // T], site.start + acts.indices.long()]

    return drop
