"""Dictionaries inside the model: what it computes stays as it was, and features are live in the autograd graph.

At every dictionary the model goes on with `recon + (y - recon).detach()` (Ge et al. 2024), so that features pass
gradients on and what they miss is a leaf. With attention patterns and norm scales detached as well, the model between
features is affine, and `value * gradient` is exact.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pullback.lens import record as rec
from pullback.lens.adapter import Lens, as_lens
from pullback.lens.compat import must_be_attention_saes, must_be_transcoders
from pullback.lens.stand_ins import StandIn
from pullback.ops import SparseActivations, sampled_dot
from pullback.transcoders import LayeredDictionary, in_memory

PARTS = ("patterns", "norms", "mlps", "features")
LINEAR = ("patterns", "norms", "mlps")
"""What has to be constant for the model between features to be affine."""


@dataclass(frozen=True, eq=False)
class Features:
    """Features of one dictionary in one pass, a row for each position, of one prompt after the other.

    Attributes:
        acts: the features; gradients are of its `values`, which are what the model goes on with.
        read: Float[Tensor, 'nnz']: the same numbers, as functions of what lies below.
    """

    acts: SparseActivations
    read: Tensor

    def at(self, row: int, feature: int) -> Tensor:
        """What one feature reads, a scalar to take gradients of. Raises ValueError where it is not active."""
        start, stop = int(self.acts.indptr[row]), int(self.acts.indptr[row + 1])
        hit = (self.acts.indices[start:stop] == feature).nonzero()
        if not len(hit):
            raise ValueError(f"feature {feature} is not active at row {row}")
        return self.read[start + int(hit[0, 0])]


def readings(sets: LayeredDictionary, layer: int, active: SparseActivations, x: Tensor) -> Tensor:
    """Pre-activations of the active features, Float[Tensor, 'nnz'], on inputs x Float[Tensor, 'n d'], and live in
    them."""
    at, W_enc = in_memory(active, sets[layer].W_enc)
    return sampled_dot(x, W_enc.detach(), at.indptr, at.indices) + sets.b_enc(layer)[active.indices.long()]


class Inserted:
    """The last forward pass under `inserted`.

    Attributes:
        features: of each dictionary, by the site that it writes to (a cross-layer transcoder: of its own layer).
        leaves: where gradients end: hook_embed, hook_pos_embed, and by the site of each dictionary what it misses,
            Float[Tensor, 'batch pos d']; of an MLP without one, its whole output.
        attention: {layer: what attention writes, before an autoencoder stands in for it}.
    """

    def __init__(
        self,
        lens: Lens,
        transcoders: LayeredDictionary | None,
        attention_saes: LayeredDictionary | None,
        detach: Collection[str],
        masks: Mapping[str, SparseActivations],
    ) -> None:
        self.lens, self.transcoders, self.attention_saes = lens, transcoders, attention_saes
        self.detach, self.masks = frozenset(detach), masks
        self.features: dict[str, Features] = {}
        self.leaves: dict[str, Tensor] = {}
        self.attention: dict[int, Tensor] = {}
        self._patterns: dict[int, Tensor] = {}

    def edits(self) -> list[tuple[str, rec.Edit]]:
        """What happens at the sites of the model."""
        layers = range(self.lens.n_layers)
        at_mlps, at_attention = self._dictionary(self.transcoders), self._dictionary(self.attention_saes)
        leaves = ["hook_embed", *(["hook_pos_embed"] if self.lens.positional == "learned" else [])]
        if "mlps" in self.detach:
            leaves += [f"blocks.{i}.hook_mlp_out" for i in layers if i not in (self.transcoders or ())]
        edits = [(site, partial(self._leaf, site)) for site in leaves]
        if "patterns" in self.detach:
            edits += [(f"blocks.{i}.attn.hook_pattern", partial(self._pattern, i)) for i in layers]
        edits += rec.detached_norms(self.lens.model) if "norms" in self.detach else self.lens.exact_edits
        edits += [(f"blocks.{i}.hook_attn_out", partial(self._attended, i)) for i in layers]
        return [*edits, *at_attention, *at_mlps]

    def _dictionary(self, sets: LayeredDictionary | None) -> list[tuple[str, rec.Edit]]:
        if sets is None:
            return []
        sites, acts = self.lens.sites(sets, sets.layers), {}
        fns = {layer: self._stand_in(sets, layer, sites[layer][1], acts) for layer in sets.layers}
        return rec.patch_edits(fns, sites)

    def _stand_in(self, sets: LayeredDictionary, layer: int, site: str, acts: dict[int, SparseActivations]) -> StandIn:
        """`acts`: features of the layers below, which may write here too."""

        def fn(x: Tensor, y: Tensor) -> Tensor:
            self.features[site] = found = self._encoded(sets, layer, site, x)
            acts[layer] = found.acts
            recon = sets.reconstruct(layer, acts, x)
            return recon + self._leaf(site, y.to(recon) - recon)

        return fn

    def _encoded(self, sets: LayeredDictionary, layer: int, site: str, x: Tensor) -> Features:
        """Whichever features are active, they pass gradients on; which are is no function of the input."""
        active = self.masks[site] if site in self.masks else sets.encode(layer, x)
        rows = x.reshape(-1, x.shape[-1]).to(active.values)
        if active.n_rows != len(rows):
            raise ValueError(
                f"inserted: the mask at {site} has {active.n_rows} rows, and this pass has {len(rows)} positions; "
                "masks are held for prompts of the same length"
            )
        read = readings(sets, layer, active, rows)
        values = read.detach().requires_grad_() if "features" in self.detach else read.clone()
        if values.requires_grad:
            values.retain_grad()
        return Features(SparseActivations(active.indptr, active.indices, values, active.n_features), read)

    def _leaf(self, site: str, value: Tensor) -> Tensor:
        self.leaves[site] = value.detach().requires_grad_()
        return self.leaves[site]

    def _pattern(self, layer: int, pattern: Tensor) -> Tensor:
        self._patterns[layer] = pattern.detach().requires_grad_()
        return self._patterns[layer]

    def _attended(self, layer: int, written: Tensor) -> None:
        self.attention[layer] = written
        if "patterns" in self.detach and not _follows(written, self._patterns.pop(layer, None)):
            raise ValueError(
                f"{self.lens.model_name}: a hook at the attention pattern of layer {layer} does not change what this "
                "model computes, so patterns cannot be detached"
            )


def _follows(written: Tensor, pattern: Tensor | None) -> bool:
    """Whether what was written is computed from the tensor that a hook put in the pattern's place."""
    if pattern is None or not written.requires_grad:
        return pattern is not None  # without gradients, nothing more can be told
    return torch.autograd.grad(written.sum(), pattern, retain_graph=True, allow_unused=True)[0] is not None


@contextmanager
def inserted(
    model: Any,
    transcoders: LayeredDictionary | None = None,
    attention_saes: LayeredDictionary | None = None,
    *,
    detach: Collection[str] = LINEAR,
    masks: Mapping[str, SparseActivations] | None = None,
    strict: bool = True,
) -> Iterator[Inserted]:
    """Inside, forward passes run through dictionaries, with errors that make up for what these miss.

    Values are the model's own (in float64, with norms in float64, as everywhere here); afterwards the model is as it
    was.

    Args:
        model: a TransformerLens model, or a `Lens` on one.
        transcoders: of MLPs, per-layer or cross-layer, at any subset of its layers.
        attention_saes: autoencoders of attention outputs (hook_attn_out), at any subset of its layers.
        detach: what is constant to gradients: "patterns" of attention; scales of "norms"; outputs of "mlps" that have
            no transcoder; and "features": each becomes a leaf, so that gradients are of direct effects.
        masks: {site: features that are active there}, of an earlier pass (`run.features[site].acts`); None: each pass
            has its own. Which features are active never is a function of the input.
        strict: False accepts dictionaries of a fine-tuned sibling.

    Yields:
        The last pass, see `Inserted`: `run.features[site].acts.values` have a gradient after `backward()`.

    Raises:
        ValueError: dictionaries of another kind or model, parts to detach that there are not, a mask of another
            length, or a model whose patterns cannot be detached.
    """
    unknown = sorted(set(detach) - set(PARTS))
    if unknown:
        raise ValueError(f"inserted: detach takes {', '.join(PARTS)}; got {', '.join(unknown)}")
    lens = as_lens(model)
    if transcoders is not None:
        transcoders = lens.fitted(transcoders, strict=strict)
        must_be_transcoders(transcoders, "inserted")
    if attention_saes is not None:
        attention_saes = lens.fitted(attention_saes, strict=strict)
        must_be_attention_saes(attention_saes, "attention_saes")
    run = Inserted(lens, transcoders, attention_saes, detach, masks or {})
    with rec.hooked(lens.model, run.edits()):
        yield run
