"""Sums over a corpus for mean attributions: how active sources are, and how active where a target fires."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pullback.attribution.weights.corpus import Activations
from pullback.ops import Coactivation, SparseActivations
from pullback.transcoders import LayeredDictionary


class MeanActivations:
    """Sums over tokens for r target features and all features of source layers, sparse, in one pass and resumable.

    Args:
        sets: the set that the activations are of.
        layer, ids: the target features (r).
        layers: of the sources.

    Attributes:
        n_prompts: prompts counted; a run that goes on leaves out so many.
        met: {source layer: ops.Coactivation of (target fires, source activation)}: `products` are sums of a source's
            activation where the target fires, `gated` the tokens on which both do.
        fired: {source layer: Int64[Tensor, 'F']}, tokens on which a source is not 0.
    """

    def __init__(self, sets: LayeredDictionary, layer: int, ids: Tensor, layers: Sequence[int]) -> None:
        self.layer, self.ids = layer, ids.cpu()
        self.n_prompts = 0
        self.met = {source: Coactivation(len(ids), sets[source].d_sae) for source in layers}
        self.fired = {source: torch.zeros(sets[source].d_sae, dtype=torch.int64) for source in layers}

    @property
    def layers(self) -> list[int]:
        """Of the sources."""
        return list(self.met)

    @property
    def n_tokens(self) -> int:
        return next(iter(self.met.values())).count

    @property
    def firings(self) -> Tensor:
        """Tokens on which each target fires, Float64[Tensor, 'r']."""
        return next(iter(self.met.values())).sums_a

    def add(self, acts: Activations) -> MeanActivations:
        """Count tokens: rows of features of the target's layer and of the sources'. Returns self."""
        fires = firings(acts[self.layer].to("cpu"), self.ids)
        for layer, met in self.met.items():
            met.add(fires, acts[layer])
            self.fired[layer] += torch.bincount(acts[layer].indices.cpu(), minlength=len(self.fired[layer]))
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Everything counted so far, as tensors."""
        state = {"n_prompts": torch.tensor(self.n_prompts), "layer": torch.tensor(self.layer), "ids": self.ids}
        for layer, met in self.met.items():
            state |= {f"{layer}.{name}": value for name, value in met.state_dict().items()}
            state[f"{layer}.fired"] = self.fired[layer]
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> MeanActivations:
        """Go on from what `state_dict` gave. Returns self. Raises ValueError where targets or layers are others."""
        layers = {int(name.split(".")[0]) for name in state if "." in name}
        if int(state["layer"]) != self.layer or not torch.equal(state["ids"], self.ids) or layers != set(self.met):
            raise ValueError(
                f"mean_attribution: the state counts features {state['ids'].tolist()[:9]} of layer "
                f"{int(state['layer'])} and sources of layers {sorted(layers)}, not {self.ids.tolist()[:9]} of layer "
                f"{self.layer} and {self.layers}"
            )
        for layer in self.met:
            own = {name.split(".")[1]: value for name, value in state.items() if name.startswith(f"{layer}.")}
            self.met[layer] = Coactivation.from_state_dict(own)
            self.fired[layer] = state[f"{layer}.fired"].clone()
        self.n_prompts = int(state["n_prompts"])
        return self


def firings(acts: SparseActivations, ids: Tensor) -> SparseActivations:
    """1 where feature ids[j] is active, as feature j of r."""
    places = torch.full((acts.n_features,), -1, dtype=torch.int32)
    places[ids] = torch.arange(len(ids), dtype=torch.int32)
    kept = acts.where((places[acts.indices.long()] >= 0) & (acts.values > 0))
    place = places[kept.indices.long()]
    # A row's ids ascend; the places of ids that were given in another order need not.
    order = (kept.rows() * len(ids) + place).argsort()
    return SparseActivations(kept.indptr, place[order], torch.ones_like(kept.values), len(ids))
