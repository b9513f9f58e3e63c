"""Greater-than by the protocol of Dunefsky, Chlenski and Nanda 2024 (METHODS 1.11): how many features, or neurons, of
one MLP carry the difference of probabilities of later and earlier years."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.lens import Lens
from pullback.lens import record as rec
from pullback.ops import SparseActivations
from pullback.studies.behaviours import Years
from pullback.transcoders import LayeredDictionary


@dataclass(frozen=True)
class YearCurve:
    """Mean probability difference over prompts whose first year has a year before and after it.

    features, neurons: with the k of largest variance kept, k = 0, 1, ..; neurons is empty where the model shows none.
    original: of the model. full: with every feature, the transcoder in the place of the MLP. ranking: features by
    variance. without: {feature: with every feature but that one}.
    """

    layer: int
    original: float
    full: float
    features: list[float]
    neurons: list[float]
    every_neuron: float | None
    ranking: list[int]
    without: dict[int, float]


class _Runs:
    """The prompts, run with one layer's MLP output edited."""

    def __init__(self, lens: Lens, sets: LayeredDictionary, years: Years, layer: int) -> None:
        self.lens, self.years, self.layer = lens, years, layer
        self.sets = lens.fitted(sets)
        self.site_in, self.site_out = lens.sites(self.sets, [layer])[layer]
        self.post = f"blocks.{layer}.mlp.hook_post"
        self.has_neurons = self.post in rec.hook_names(lens.model)
        sites = [self.site_in, self.post] if self.has_neurons else [self.site_in]
        self.logits, seen = lens.record(years.tokens, sites)
        self.x, self.neurons = seen[self.site_in], seen.get(self.post)
        self.acts = self.sets.encode(layer, self.x)

    def difference(self, edits: list[tuple[str, rec.Edit]]) -> float:
        return self.mean(self.lens.record(self.years.tokens, [], edits)[0] if edits else self.logits)

    def mean(self, logits: Tensor) -> float:
        """Over the years but the first and the last."""
        return float(self.years.difference(logits[:, -1])[1:-1].double().mean())

    def with_features(self, keep: Tensor) -> float:
        """keep (F) bool. The transcoder's output bias, and a skip path, stay."""
        kept: SparseActivations = self.acts.where(keep[self.acts.indices.long()])
        y = self.sets.reconstruct(self.layer, {self.layer: kept}, self.x)
        return self.difference([(self.site_out, lambda old: y.to(old))])

    def with_neurons(self, keep: Tensor) -> float:
        """keep (d_mlp) bool. The output bias of the MLP stays."""
        return self.difference([(self.post, lambda post: post * keep.to(post))])


@torch.no_grad()
def year_curve(
    lens: Lens, sets: LayeredDictionary, years: Years, layer: int, *, most: int = 99, without: int = 40
) -> YearCurve:
    """Keep the k features, or neurons, of largest variance over the prompts at the last token, all others zero at every
    position; k from 0 to `most`. The first `without` features are also taken out one at a time.

    Raises ValueError for a layer that has no features, or whose MLP others write to.
    """
    if layer not in sets or sets.sources(layer) != [layer]:
        raise ValueError(f"study greater-than: layer {layer} needs a transcoder of its own; the set has {sets.layers}")
    runs = _Runs(lens, sets, years, layer)
    last = slice(years.tokens.shape[1] - 1, None, years.tokens.shape[1])
    features = by_variance(runs.acts.to_dense()[last])
    neurons = by_variance(runs.neurons[:, -1]) if runs.neurons is not None else None
    F = len(features)
    every = torch.ones(F, dtype=torch.bool)

    def kept(order: Tensor, k: int) -> Tensor:
        return torch.zeros(len(order), dtype=torch.bool).index_fill(0, order[:k], True)

    return YearCurve(
        layer=layer,
        original=runs.difference([]),
        full=runs.with_features(every),
        features=[runs.with_features(kept(features, k)) for k in range(min(most, F) + 1)],
        neurons=[]
        if neurons is None
        else [runs.with_neurons(kept(neurons, k)) for k in range(min(most, len(neurons)) + 1)],
        every_neuron=None if neurons is None else runs.with_neurons(kept(neurons, len(neurons))),
        ranking=features.tolist(),
        without={
            f: runs.with_features(every.index_fill(0, torch.tensor(f), False)) for f in features[:without].tolist()
        },
    )


def by_variance(values: Tensor) -> Tensor:
    """Columns of (n, F), the one of largest variance first; of equal ones the lower number."""
    return torch.argsort(values.double().var(0, correction=0), descending=True, stable=True)
